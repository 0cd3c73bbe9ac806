"""One real run for all tests of pages."""

from pathlib import Path

import pytest

from tests.watch import runs


@pytest.fixture(scope="session")
def real_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.real(tmp_path_factory.mktemp("watch") / "run")
