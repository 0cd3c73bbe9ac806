"""Input checks shared by all rules: every error names the row and the reason."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# Squares of float64 entries beyond this overflow; float32 entries never reach it.
_MAX_FLOAT64 = 1e150


def check_matrix(x: Tensor) -> Tensor:
    """Return `x` as a detached [n, d] float32 or float64 matrix whose rows are contiguous.

    A column slice of a wider matrix passes without a copy; any other layout is copied. Finiteness is not
    checked here: every rule does that inside a pass that it makes anyway (see `require_finite`).

    Raises:
        ValueError: not two-dimensional, empty, or of another dtype.
    """
    if x.ndim != 2:
        raise ValueError(f"expected a matrix [n, d] with one row per peer, got rank {x.ndim}, shape {tuple(x.shape)}")
    n, d = x.shape
    if n == 0 or d == 0:
        raise ValueError(f"nothing to aggregate: shape {(n, d)} has {'no rows' if n == 0 else 'rows without entries'}")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"expected float32 or float64 rows, got {x.dtype}; convert them with .float()")
    x = x.detach()
    rows_are_contiguous = d == 1 or x.stride(1) == 1
    rows_are_apart = n == 1 or x.stride(0) >= d
    return x if rows_are_contiguous and rows_are_apart else x.contiguous()


def require_finite(x: Tensor) -> None:
    """Search `x` for the first row that is not finite. Two passes; called only when a cheaper check has failed.

    Raises:
        ValueError: names the first bad row, its first bad column and what stands there; also for float64
            entries above 1e150, whose squares leave the range of float64.
    """
    for index, row in enumerate(x):
        bad = ~torch.isfinite(row)
        if row.dtype == torch.float64:
            bad |= row.abs() > _MAX_FLOAT64
        if bool(bad.any()):
            column = int(bad.to(torch.uint8).argmax())
            entry = float(row[column])
            reason = f"exceeds {_MAX_FLOAT64:g} in magnitude" if math.isfinite(entry) else "is not finite"
            raise ValueError(f"row {index} {reason}: entry {entry} at column {column}, {int(bad.sum())} such in all")


def check_tau(tau: float) -> float:
    """Return the clipping radius as a float in (0, inf].

    Raises:
        ValueError: `tau` is zero, negative or NaN.
    """
    tau = float(tau)
    if not tau > 0:
        raise ValueError(f"the clipping radius tau must lie in (0, inf], got {tau}")
    return tau


def check_weights(weights: Tensor | np.ndarray | list[float] | None, n: int) -> np.ndarray:
    """Return the row weights [n] in float64; None gives ones.

    Raises:
        ValueError: wrong length, a negative or non-finite weight (its row is named), or all weights zero.
    """
    if weights is None:
        return np.ones(n)
    if isinstance(weights, Tensor):
        weights = weights.detach().cpu().numpy()
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (n,):
        raise ValueError(f"expected one weight for each of {n} rows, got shape {w.shape}")
    bad = ~(np.isfinite(w) & (w >= 0))
    if bad.any():
        index = int(bad.argmax())
        raise ValueError(f"the weight of row {index} must be finite and not negative, got {w[index]}")
    if not w.any():
        raise ValueError(f"all {n} weights are zero: there is nothing to aggregate")
    return w


def check_byzantine(byzantine: int) -> int:
    """Return the assumed number of Byzantine rows.

    Raises:
        ValueError: negative or not an integer.
    """
    if int(byzantine) != byzantine or byzantine < 0:
        raise ValueError(f"the number of Byzantine rows must be an integer >= 0, got {byzantine}")
    return int(byzantine)
