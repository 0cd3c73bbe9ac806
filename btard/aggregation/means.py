"""The mean and the geometric median."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from btard.aggregation.checks import check_matrix, require_finite
from btard.aggregation.gram import checked_gram, combination
from btard.aggregation.solver import solve


def mean(x: Tensor) -> Tensor:
    """The mean of the rows, (1/n) sum_i g_i: [d] in the dtype of `x`. No robustness. Two passes.

    Raises:
        ValueError: bad shape or dtype, or a row that is not finite.
    """
    x = check_matrix(x)
    value = x.mean(dim=0)
    if not bool(torch.isfinite(value).all()):
        require_finite(x)
        value = (x / len(x)).sum(dim=0)  # the sum overflowed, the mean need not
    return value


def geometric_median(x: Tensor, *, max_iterations: int = 500) -> Tensor:
    """The minimiser of sum_i ||g_i - v||, to convergence: [d] in the dtype of `x`.

    Weiszfeld (1937) with Vardi and Zhang's step (2000) away from rows and Newton's method, in Gram space; proposed
    for Byzantine training by Chen, Su and Xu (2017) and Pillutla, Kakade and Harchaoui (RFA, 2019). Where a row is the
    minimiser, that row itself is returned. On a line with an even number of rows the minimiser is not unique; any may
    come out. Two rounds, the second about the solution of the first, so that rounding is relative to distances
    and not to norms.

    Raises:
        ValueError: bad shape or dtype, or a row that is not finite.
    """
    x = check_matrix(x)
    w = np.ones(len(x))
    g, wide = checked_gram(x)
    p, _ = solve(g, w, 0.0, max_iterations)
    base = combination(x, p, None, wide=wide)
    g, wide = checked_gram(x, base, wide=wide)
    p, _ = solve(g, w, 0.0, max_iterations, start=p)
    if float(p.max()) == 1.0:
        return x[int(p.argmax())].clone()
    return combination(x, p, base, wide=wide)
