"""What a server does to the rows before its rule: nearest-neighbour mixing and bucketing, [n, d] -> [m, d].

Both make honest rows more alike, which helps where honest peers have different data.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from btard.aggregation.checks import check_byzantine, check_matrix, require_finite
from btard.aggregation.gram import squared_distances


def nearest_neighbour_mixing(x: Tensor, byzantine: int) -> Tensor:
    """NNM: every row becomes the mean of the n - f rows nearest to it, itself included: [n, d] in the dtype of `x`.

        y_i = 1/(n - f) sum_{j in N_i} x_j,  N_i the n - f rows with the smallest ||x_i - x_j||

    Allouah et al., "Fixing by Mixing" (AISTATS 2023), algorithm 2. Stands f < n/2 Byzantine rows in front of a rule
    that does. Ties go to the lower index. One pass in float64 for the distances and one product [n, n] x [n, d].

    Args:
        x: [n, d] float32 or float64.
        byzantine: f, the number of Byzantine rows to withstand.

    Raises:
        ValueError: bad shape or dtype, a row that is not finite, or n <= 2 f.
    """
    x = check_matrix(x)
    n, f = len(x), check_byzantine(byzantine)
    if n <= 2 * f:
        raise ValueError(f"nearest-neighbour mixing needs n > 2 f rows: n = {n}, f = {f} has no honest majority")
    nearest = np.argsort(squared_distances(x), axis=1, kind="stable")[:, : n - f]
    share = torch.zeros(n, n, dtype=x.dtype)
    share.scatter_(1, torch.from_numpy(nearest), 1 / (n - f))
    return share.to(x.device) @ x


def bucketing(x: Tensor, order: np.ndarray, size: int = 2) -> Tensor:
    """The means of buckets of `size` rows in a random `order`: [ceil(n / size), d] in the dtype of `x`.

        y_i = mean of x_order(k), (i - 1) size <= k < i size

    Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing" (ICLR 2022),
    algorithm 1, with size 2 as they recommend. f Byzantine rows make at most f Byzantine buckets, so the rule behind it
    has to stand f of n / size rows. Where `size` does not divide n, the last bucket is the mean of the rows that are
    left. Two passes.

    Args:
        x: [n, d] float32 or float64.
        order: [n], a permutation of 0..n-1 that the peers could not foresee.
        size: s, rows of a bucket.

    Raises:
        ValueError: bad shape or dtype, a row that is not finite, `size` < 1, or an `order` that is no permutation.
    """
    x = check_matrix(x)
    if size < 1:
        raise ValueError(f"a bucket needs at least 1 row, got {size}")
    if sorted(np.asarray(order).tolist()) != list(range(len(x))):
        raise ValueError(f"the order of the rows must be a permutation of 0 to n - 1 = {len(x) - 1}")
    chosen = torch.from_numpy(np.array(order)).to(x.device)
    value = torch.stack([x[some].mean(dim=0) for some in chosen.split(size)])
    if not bool(torch.isfinite(value).all()):
        require_finite(x)
        value = torch.stack([(x[some] / len(some)).sum(dim=0) for some in chosen.split(size)])  # the sum overflowed
    return value


MIXINGS: dict[str, Callable[[Tensor, int, int, np.random.Generator], Tensor]] = {
    "nnm": lambda x, byzantine, size, stream: nearest_neighbour_mixing(x, byzantine),
    "bucketing": lambda x, byzantine, size, stream: bucketing(x, stream.permutation(len(x)), size),
}
"""Name -> mixing of (x, Byzantine rows, rows of a bucket, random stream). A mixing ignores what it does not use."""
