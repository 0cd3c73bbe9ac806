"""Rules on the order of each coordinate: coordinate-wise median and trimmed mean, by selection networks.

A network compares whole rows, elementwise, in blocks of columns. It is Batcher's odd-even merge sort with
every comparator left out whose outcome is not needed: 52 of 63 are left for the median of 16.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from btard.aggregation.checks import check_byzantine, check_matrix, require_finite
from btard.aggregation.gram import chunks

# Entries up to which torch keeps an operation in one thread. A comparator is over so soon that sharing it out among
# threads takes longer than doing it; they work on different columns instead.
_SERIAL = 2**15 - 1


@dataclass(frozen=True)
class Comparator:
    """Puts the smaller of lines `low`, `high` on `low` and the larger on `high`, where that is needed."""

    low: int
    high: int
    keep_low: bool
    keep_high: bool


def _batcher(n: int) -> list[tuple[int, int]]:
    """Batcher's odd-even merge sort of n lines (Knuth, volume 3, algorithm 5.2.2M)."""
    pairs = []
    size = 1
    while size < n:
        gap = size
        while gap >= 1:
            for start in range(gap % size, n - gap, 2 * gap):
                for low in range(start, start + min(gap, n - start - gap)):
                    if low // (2 * size) == (low + gap) // (2 * size):
                        pairs.append((low, low + gap))
            gap //= 2
        size *= 2
    return pairs


@lru_cache(maxsize=256)
def network(n: int, first: int, last: int, ordered: bool) -> tuple[Comparator, ...]:
    """Comparators that bring the values of ranks first..last (from 0) of n lines to those lines.

    Args:
        ordered: each value on the line of its rank; otherwise they may stand on these lines in any order.
    """
    needed = set(range(first, last + 1))
    untouched = set() if ordered else set(needed)
    kept = []
    for low, high in reversed(_batcher(n)):
        if low in untouched and high in untouched:
            continue  # both values are wanted and nothing later looks at their order
        keep_low, keep_high = low in needed, high in needed
        if keep_low or keep_high:
            kept.append(Comparator(low, high, keep_low, keep_high))
            needed |= {low, high}
            untouched -= {low, high}
    return tuple(reversed(kept))


def apply_network(rows: list[Tensor], comparators: tuple[Comparator, ...], scratch: Tensor) -> list[Tensor]:
    """Run the network on `rows` (each [c]) and return the lines; the rows are only read.

    Args:
        scratch: [n + 2, c or more], overwritten. A result lies in it, unless no comparator touched its line; lines
            whose values nobody needs are left in any state.
    """
    columns = rows[0].shape[0]
    free = [row[:columns] for row in scratch.unbind(0)]
    lines = list(rows)
    owned = [False] * len(rows)
    for c in comparators:
        a, b = lines[c.low], lines[c.high]
        released = [line for line, mine in ((a, owned[c.low]), (b, owned[c.high])) if mine]
        if c.keep_low:
            lines[c.low] = torch.minimum(a, b, out=free.pop())
        if c.keep_high:
            lines[c.high] = torch.maximum(a, b, out=free.pop())
        owned[c.low], owned[c.high] = c.keep_low, c.keep_high
        free += released
    return lines


def _mean_of_ranks(x: Tensor, first: int, last: int) -> Tensor:
    """Per coordinate, the mean of the values of ranks first..last (from 0) among the rows."""
    x = check_matrix(x)
    n, d = x.shape
    # Infinities need not reach the result, but they do reach the sum (so may overflow: the search then finds nothing).
    if not math.isfinite(float(x.sum())):
        require_finite(x)
    comparators = network(n, first, last, False)
    value = x.new_empty(d)
    columns = next(chunks(x)).stop if x.is_cuda else _SERIAL
    blocks = [slice(start, min(start + columns, d)) for start in range(0, d, columns)]
    threads = 1 if x.is_cuda else min(torch.get_num_threads(), len(blocks))

    def work(mine: list[slice]) -> None:
        scratch = x.new_empty(n + 2, min(columns, d))
        for block in mine:
            lines = apply_network(list(x[:, block].unbind(0)), comparators, scratch)[first : last + 1]
            out = value[block]
            out.copy_(lines[0])
            for line in lines[1:]:
                out += line
            out /= len(lines)

    if threads == 1:
        work(blocks)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, [blocks[share::threads] for share in range(threads)]))
    return value


def coordinate_median(x: Tensor) -> Tensor:
    """The median of each coordinate (Yin et al., ICML 2018, definition 1): [d] in the dtype of `x`.

    For even n the mean of the two middle values. Costs about 13 reads of the memory at n = 16.

    Raises:
        ValueError: bad shape or dtype, or a row that is not finite.
    """
    n = len(x)
    return _mean_of_ranks(x, (n - 1) // 2, n // 2)


def trimmed_mean(x: Tensor, byzantine: int) -> Tensor:
    """Per coordinate, the mean without the b largest and the b smallest values: [d] in the dtype of `x`.

    Yin et al. (ICML 2018), definition 2, with beta = b / n. Costs about as much as `coordinate_median`.

    Raises:
        ValueError: bad shape or dtype, a row that is not finite, or n <= 2 b.
    """
    b, n = check_byzantine(byzantine), len(check_matrix(x))
    if n <= 2 * b:
        raise ValueError(f"trimmed_mean needs n > 2 b rows: n = {n}, b = {b} leaves none")
    return _mean_of_ranks(x, b, n - b - 1)
