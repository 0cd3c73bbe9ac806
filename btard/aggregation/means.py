"""The mean and the geometric median, to convergence and in the few steps of RFA."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from btard.aggregation.checks import check_matrix, require_finite
from btard.aggregation.gram import checked_gram, combination, row_squares
from btard.aggregation.solver import distances_from, solve


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


MEDIAN_ITERATIONS = 500
"""Bound on the iterations of each round; a dozen are usual."""


def geometric_median(x: Tensor) -> Tensor:
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
    p, _ = solve(g, w, 0.0, MEDIAN_ITERATIONS)
    base = combination(x, p, None, wide=wide)
    g, wide = checked_gram(x, base, wide=wide)
    p, _ = solve(g, w, 0.0, MEDIAN_ITERATIONS, start=p)
    if float(p.max()) == 1.0:
        return x[int(p.argmax())].clone()
    return combination(x, p, base, wide=wide)


RFA_STEPS, RFA_SMOOTHING = 3, 1e-6
"""R and nu of Pillutla, Kakade and Harchaoui (2022)."""


def rfa(x: Tensor, *, iterations: int = RFA_STEPS, nu: float = RFA_SMOOTHING, start: Tensor | None = None) -> Tensor:
    """RFA, the smoothed Weiszfeld algorithm cut short: [d] in the dtype of `x`.

        v <- sum_i b_i x_i / sum_i b_i,  b_i = 1 / max(nu, ||x_i - v||),  `iterations` times from v = start on

    Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning" (IEEE TSP 2022), algorithm 2, with
    their R = 3 and nu = 1e-6 and equal weights. The algorithm takes the start [d]; None is the mean, as in their code.
    Others start at 0, and then far rows weigh little from the first step on. From the mean, it stands f < n/2 Byzantine
    rows only as far as three steps get: one at distance D moves it by D / ((n - 1)^4 + 1) where the others coincide.
    `geometric_median` converges. One pass for the Gram matrix, in which all steps are made, one to form the value.

    Raises:
        ValueError: bad shape or dtype, a row that is not finite, `iterations` < 0 or `nu` not > 0.
    """
    x = check_matrix(x)
    if iterations < 0 or not nu > 0:
        raise ValueError(f"rfa needs iterations >= 0 and nu > 0, got {iterations} and {nu}")
    g, wide = checked_gram(x, wide=True)
    p = np.full(len(x), 1 / len(x))
    for step in range(iterations):
        away = np.sqrt(row_squares(x, start.double())) if start is not None and not step else distances_from(g, p)
        pull = 1 / np.maximum(nu, away)
        p = pull / pull.sum()
    return combination(x, p, None, wide=wide)
