"""CenteredClip as the papers state it, to compare with: v <- v + mean_i (g_i - v) min(1, tau / ||g_i - v||)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def textbook_iteration(x: Tensor, v: Tensor, tau: float, columns: int = 1 << 17) -> Tensor:
    """One iteration on x [n, d] at v [d], in cache-sized blocks: a pass for the distances and one for the update."""
    squares = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    parts = [slice(start, start + columns) for start in range(0, x.shape[1], columns)]
    for part in parts:
        squares += torch.linalg.vector_norm(x[:, part] - v[part], dim=1).double() ** 2
    factors = (torch.clamp(tau / squares.sqrt(), max=1.0) / len(x)).to(x.dtype)
    new = torch.empty_like(v)
    for part in parts:
        new[part] = v[part] + torch.mv((x[:, part] - v[part]).t(), factors)
    return new


def textbook_clip(x: Tensor, tau: float, steps: int) -> Tensor:
    """`steps` iterations on x [n, d] from the mean of the n // 2 + 1 rows of smallest norm."""
    shortest = torch.linalg.vector_norm(x, dim=1).argsort(stable=True)[: len(x) // 2 + 1]
    v = torch.mv(x.t(), torch.zeros_like(x[:, 0]).index_fill_(0, shortest, 1 / len(shortest)))
    for _ in range(steps):
        v = textbook_iteration(x, v, tau)
    return v


@dataclass(frozen=True)
class Count:
    """How the textbook iteration converges: `residuals[k]` is the residual after k iterations."""

    iterations: float
    """Until the residual asked for; inf if it does not get closer."""
    extrapolated: bool
    """Whether `iterations` follows from the rate of convergence at the limit, because the limit came first."""
    residuals: tuple[float, ...]
    """After 0, 1, ... iterations, of the first 21."""


def textbook_count(g: np.ndarray, tau: float, residual: float, limit: int) -> Count:
    """Follow the iteration on the Gram matrix g [n, n] of the rows, where it costs n^2 instead of n d.

    Its iterates are combinations of the rows, with the same coefficients as on the data. It starts as `textbook_clip`
    does, no worse than at the coordinate-wise median. The unit of the residual is that of
    `btard.aggregation.CenteredClip.residual`.
    """
    n = len(g)
    p = np.zeros(n)
    p[np.argsort(np.diag(g), kind="stable")[: n // 2 + 1]] = 1 / (n // 2 + 1)
    trace: list[float] = []
    reached: int | None = None
    for count in range(limit):
        q = np.eye(n) - p
        distances = np.sqrt(np.maximum(((q @ g) * q).sum(1), 1e-300))
        step = (np.minimum(1.0, tau / distances) / n) @ q
        trace.append(math.sqrt(max(float(step @ g @ step), 0.0)) / min(tau, float(np.median(distances))))
        if reached is None and trace[-1] <= residual:
            reached = count
        if reached is not None and count >= 20:
            break
        p = p + step
    if reached is not None:
        return Count(float(reached), False, tuple(trace[:21]))
    # Linear convergence: the rate over the last tenth carries on.
    tail = trace[-max(2, limit // 10) :]
    rate = (tail[-1] / tail[0]) ** (1 / (len(tail) - 1))
    more = math.inf if rate >= 1 else math.log(residual / trace[-1]) / math.log(rate)
    return Count(limit - 1 + more, True, tuple(trace[:21]))
