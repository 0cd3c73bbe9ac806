"""What the tests of the swarm share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invented text, prepared with sequence length 64. Not to be changed."""
    from albert.data.options import Options
    from albert.data.preparation import prepare  # imports torch, which the tests of the cloud do without

    folder = tmp_path_factory.mktemp("albert") / "data"
    prepare(Options("synthetic", tokenizer=None, vocab_size=2_000, sequence_length=64), folder, progress=False)
    return folder
