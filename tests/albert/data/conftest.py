"""Prepared folders: invented text as `--source synthetic` makes it, and hand-made examples without a tokenizer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from albert.data.corpus import Corpus
from albert.data.folder import arrow_file, data_digest, write_examples, write_record
from albert.data.options import Options
from albert.data.pairs import Pair
from albert.data.preparation import prepare

MakeCorpus = Callable[[Sequence[tuple[list[int], list[int]]]], Corpus]

LENGTH = 16
VOCABULARY = 40
SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invented text, prepared with sequence length 64. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("prepared") / "synthetic"
    options = Options("synthetic", tokenizer=None, vocab_size=2_000, sequence_length=64)
    record, made = prepare(options, folder, progress=False)
    assert made and record["vocab_size"] == 2_000
    return folder


@pytest.fixture
def make_corpus(tmp_path: Path) -> MakeCorpus:
    """Return a function from (segment A, segment B) of each example to a corpus, sequence length 16, 40 tokens."""

    def make(examples: Sequence[tuple[list[int], list[int]]]) -> Corpus:
        pairs = [Pair(np.array(a + b, np.int32), len(a)) for a, b in examples]
        split_digest = write_examples(arrow_file(tmp_path, "train"), pairs, progress=False)
        special = sorted(SPECIAL.values())
        words = [str(i) for i in range(VOCABULARY)]
        write_record(
            tmp_path,
            {
                "digest": data_digest(LENGTH, words, special, [split_digest]),
                "sequence_length": LENGTH,
                "vocab_size": VOCABULARY,
                "special_tokens": SPECIAL,
                "special_ids": special,
                "splits": {"train": {"examples": len(pairs)}},
            },
        )
        return Corpus(tmp_path)

    return make
