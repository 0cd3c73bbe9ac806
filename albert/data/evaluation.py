"""Batches for evaluation: the same for everybody, whatever the seed of a run."""

from collections.abc import Iterator

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
