"""Batches for evaluation: the same for everybody, whatever the seed of a run."""

import math
from collections.abc import Iterator

import numpy as np

from albert.data.batches import Batch, fixed_batch
from albert.data.corpus import Corpus


def evaluation_batches(corpus: Corpus, size: int, limit: int | None = None) -> Iterator[Batch]:
    """Yield every example of the corpus once, in batches of `size` (the last may be smaller), as `batches.batch` does.

    `limit`: at most so many examples, evenly spaced. The order of an example's segments and its masks depend on the
    example alone, neither on `size` nor on `limit`. Raises ValueError if one of these is below 1.
    """
    if size < 1 or (limit is not None and limit < 1):
        raise ValueError(f"evaluation_batches: expected size and limit of at least 1, got {size} and {limit}")
    count = len(corpus) if limit is None else min(limit, len(corpus))
    chosen = [i * len(corpus) // count for i in range(count)]
    return (fixed_batch(corpus, chosen[begin : begin + size]) for begin in range(0, count, size))


def guessing_loss(train: Corpus, validation: Corpus) -> float:
    """Return the validation loss, in nats, of guessing by how frequent words are in the training split.

    It is the mean cross-entropy of words by these frequencies, plus ln 2 for the order of sentences. A model with a
    lower loss has learned something.
    """
    seen, asked = train.frequencies(), validation.frequencies()
    expected = (seen + 1) / (seen + 1).sum()  # one more of each: a word of the validation split alone is possible, too
    return float(-(asked * np.log(expected)).sum() / asked.sum()) + math.log(2)
