"""CenteredClip: the fixed point of the clipped mean, solved in Gram space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from btard.aggregation.checks import check_matrix, check_tau, check_weights, require_finite
from btard.aggregation.gram import GRAM_ERROR, Combined, checked_gram, clipped_square, combine, gram, norm, row_squares
from btard.aggregation.solver import Solving, distances_from, side_by_side, solving

# Passes after the first Gram matrix; two suffice unless rounding is extreme.
_MAX_ROUNDS = 10


@dataclass(frozen=True)
class CenteredClip:
    """Result of `centered_clip`.

    Attributes:
        value: [d], dtype and device of the input.
        residual: norm of the clipped sum at `value` relative to `sum_i w_i min(tau, median distance)`.
        iterations: iterations in coefficient space, all rounds together.
        distances: [n] float64 on the CPU, `||g_i - value||` as measured.
        clipped: [n] bool on the CPU, `distances > tau`.
        converged: `residual <= max(tol, floor)`, see `centered_clip`.
    """

    value: Tensor
    residual: float
    iterations: int
    distances: Tensor
    clipped: Tensor
    converged: bool


def _influence(distances: np.ndarray, w: np.ndarray, tau: float) -> np.ndarray:
    """Factors w_i min(1, tau / D_i) of the rows in equation (CC)."""
    return w * np.minimum(1.0, tau / np.maximum(distances, 1e-300))


def _unit(distances: np.ndarray, w: np.ndarray, tau: float) -> float:
    """`sum_i w_i min(tau, median distance)`, the unit of a residual.

    The median is over rows of positive weight. Where it vanishes, as most rows coincide with the value, the largest
    distance takes its place.
    """
    used = sorted(distances[w > 0].tolist())
    typical = (used[(len(used) - 1) // 2] + used[len(used) // 2]) / 2 or used[-1]
    return float(w.sum()) * min(tau, typical)


def _relative(size: float, unit: float) -> float:
    if size == 0:
        return 0.0
    return size / unit if unit > 0 else math.inf


def _floor(
    size: float,
    influence: np.ndarray,
    distances: np.ndarray,
    w: np.ndarray,
    tau: float,
    eps: float,
    unit: float,
    least: float = 0.0,
) -> float:
    """Residual that rounding may leave at a value of norm `size`: half an epsilon from it, as much from arithmetic.

    And, for the entries that are too small for an epsilon of them, a value of norm `least`.

    If even tau is within rounding, a row that the value was meant to coincide with pulls at it with any force up to
    tau.
    """
    slack = float(influence @ (least + eps * (size + distances)))
    rounding = 4 * (least + eps * size)
    if tau < rounding:
        slack += float((w * np.minimum(distances, tau))[distances <= rounding].sum())
    return _relative(slack, unit)


def _quantum(dtype: torch.dtype) -> float:
    """The smallest number of `dtype`."""
    info = torch.finfo(dtype)
    return info.tiny * info.eps


def _gram_noise(squares: np.ndarray, distances: np.ndarray, influence: np.ndarray, eps: float) -> float:
    """Clipped sum to expect from the rounding of the Gram matrix, of diagonal `squares`, that `distances` come from.

    A distance whose square is below the error of that is not zero but unknown.
    """
    error = GRAM_ERROR * eps * squares
    return float(influence @ np.minimum(error / np.maximum(distances, 1e-300), np.sqrt(error)))


def centered_clip(
    x: Tensor,
    tau: float,
    *,
    tol: float = 1e-6,
    weights: Tensor | np.ndarray | list[float] | None = None,
    max_iterations: int = 200,
) -> CenteredClip:
    """The fixed point `v` of CenteredClip, equation (CC) (Karimireddy et al., ICML 2021; Gorbunov et al., ICML 2022):

        sum_i w_i (g_i - v) min(1, tau / ||g_i - v||) = 0

    It minimises a convex loss, so it does not depend on a start and is unique unless the rows lie on a line. Each
    iteration of the solver works on an n x n Gram matrix alone. The result is the same bits for the same input, dtype,
    device and number of threads, wherever the rows lie: as a column slice of another matrix, say.

    `residual` is measured on the rounded `value` in the pass that forms it, its distances by inner products where those
    are precise enough; beyond float noise (about 1e-8 in float32) it errs upwards only. Rounding `value` to its dtype
    leaves a residual of its own, up to `floor`: one epsilon of `||v||`, and of the distances of what is clipped,
    against `min(tau, median distance)`. Where `floor` exceeds `tol`, the solver stops at the floor and calls it
    converged.

    Cost: one pass for the Gram matrix and one to form and measure the value. Where the rows have much in common (their
    norms far above their distances), a second Gram matrix about the first solution and another pass to form the value.
    float32 rows with entries beyond about 1e18 or typically below 1e-16 are computed in float64, several times slower.

    Args:
        x: [n, d] float32 or float64, one row per peer; CPU or CUDA; may be a column slice.
        tau: clipping radius in (0, inf]. inf gives the mean; tau -> 0 tends to the geometric median.
        tol: relative residual at which to stop.
        weights: [n], finite and not negative; equal by default.
        max_iterations: bound on the iterations of each round in coefficient space.

    Raises:
        ValueError: `x` is not a float matrix, is empty, or has a row that is not finite (it is named; float64 entries
            beyond 1e150 count as such); `tau` not in (0, inf]; bad weights.

    >>> import btard, torch
    >>> rows = torch.tensor([[0.0, 1.0], [0.2, 1.2], [0.1, 0.9], [900.0, -900.0]])
    >>> (btard.centered_clip(rows, tau=0.5).value - torch.tensor([0.1, 1.0])).norm() < 0.5
    tensor(True)
    """
    x, tau = check_matrix(x), check_tau(tau)
    return side_by_side([_clipping(x, tau, check_weights(weights, len(x)), tol, max_iterations)])[0]


def centered_clips(
    matrices: Sequence[Tensor], tau: float, *, tol: float = 1e-6, max_iterations: int = 200
) -> list[CenteredClip]:
    """`centered_clip` of each of `matrices` [n, d], the same to the bit: faster where they are small and n is the same.

    Raises:
        ValueError: as `centered_clip`, for any of them.
    """
    checked, tau = [check_matrix(x) for x in matrices], check_tau(tau)
    weights = {len(x): check_weights(None, len(x)) for x in checked}
    return side_by_side([_clipping(x, tau, weights[len(x)], tol, max_iterations) for x in checked])


def _clipping(x: Tensor, tau: float, w: np.ndarray, tol: float, max_iterations: int) -> Solving[CenteredClip]:
    """As `centered_clip`, for what was checked."""
    eps = torch.finfo(x.dtype).eps
    base, p, iterations = None, None, 0
    best: tuple[Combined, np.ndarray, float, float] | None = None

    g, wide = checked_gram(x)
    if float(g.max() - g.min()) <= 8 * eps * float(g.max()) and torch.equal(x, x[:1].expand_as(x)):
        # Equal rows come back as they are: no weighted sum of them is sure to round to that.
        return CenteredClip(
            value=x[0].clone(),
            residual=0.0,
            iterations=0,
            distances=torch.zeros(len(x), dtype=torch.float64),
            clipped=torch.zeros(len(x), dtype=torch.bool),
            converged=True,
        )
    for _ in range(_MAX_ROUNDS):
        p, steps = yield from solving(g, w, tau, max_iterations, start=p, stop=eps / 128)
        iterations += steps
        expected = distances_from(g, p)
        influence = _influence(expected, w, tau)
        squares = g.diagonal()
        noise = _gram_noise(squares, expected, influence, 2.0**-52 if wide else eps)
        # Distances that all vanish are lost in the rounding of the rows: equal rows are done already.
        unit = _unit(expected, w, tau)
        precise = unit > 0 and noise <= tol / 2 * unit
        formed = combine(x, p, influence, base, squares if precise else None, wide=wide)
        distances = np.sqrt(formed.squares)
        unit = _unit(distances, w, tau)
        actual = _influence(distances, w, tau)
        # The clipped sum was taken with the influence expected from the Gram matrix: add what the difference can make.
        clipped_sum = formed.clipped_sum + float(np.abs(actual - influence) @ distances)
        residual = _relative(clipped_sum, unit)
        floor = _floor(formed.size, actual, distances, w, tau, eps, unit)
        previous = math.inf if best is None else best[2]
        # Close to rows that nearly coincide a residual says little, and a smaller one elsewhere is no better.
        if best is None or (residual > max(tol, floor), residual) < (previous > max(tol, best[3]), previous):
            best = (formed, distances, residual, floor)
        # A value formed about a base rounds better: even at the floor, one more round may halve the residual.
        if residual <= (tol if base is None else max(tol, floor)):
            break
        stalled = residual > previous / 2
        if stalled and (wide or best[2] <= max(tol, best[3])):
            break
        base = best[0].value
        if stalled:
            # Hostile rows that nearly cancel each other can bury the rest in float32 rounding, never in float64's.
            wide, g = True, gram(x, base, wide=True)
        elif formed.gram is not None:
            g = formed.gram
        else:
            g, wide = checked_gram(x, base, wide=wide)

    assert best is not None
    formed, distances, residual, floor = best
    return CenteredClip(
        value=formed.value,
        residual=residual,
        iterations=iterations,
        distances=torch.from_numpy(distances),
        clipped=torch.from_numpy(distances > tau),
        converged=residual <= max(tol, floor),
    )


def clip_residual(
    x: Tensor, value: Tensor, tau: float, *, weights: Tensor | np.ndarray | list[float] | None = None
) -> float:
    """Relative residual of equation (CC) at any claimed `value`, with the unit of `CenteredClip.residual`:

        || sum_i w_i (g_i - v) min(1, tau / ||g_i - v||) || / sum_i w_i min(tau, median distance)

    Computed in float64 throughout, in two passes. inf if `value` is not finite. Before it convicts anybody, a judge
    compares it with `max(tolerance, floor)` of `residual_and_floor`: if most rows coincide, or tau is tiny, the
    rounding of an honest value is no longer small in this unit.

    Args:
        x: [n, d] float32 or float64.
        value: [d], the claimed aggregate, float32 or float64.
        tau: clipping radius in (0, inf].
        weights: [n], as for `centered_clip`.

    Raises:
        ValueError: as `centered_clip`; `value` is not a float vector [d].
    """
    return residual_and_floor(x, value, tau, weights=weights)[0]


def residual_and_floor(
    x: Tensor,
    value: Tensor,
    tau: float,
    *,
    weights: Tensor | np.ndarray | list[float] | None = None,
    eps: float = 0.0,
    quantum: float = 0.0,
) -> tuple[float, float]:
    """The residual of `clip_residual`, and the floor that rounding sets to it at `value`, see `centered_clip`.

    A residual below the floor means that another step of reweighting would move `value` by less than one epsilon of
    its norm and of the distances: the floor of a far-off value is small, so it cannot be used to hide one. `eps` and
    `quantum`: those of the numbers that `value` was rounded to, if they are more than its dtype's; the quantum is the
    smallest such number.
    """
    x, tau = check_matrix(x), check_tau(tau)
    n, d = x.shape
    w = check_weights(weights, n)
    if not isinstance(value, Tensor) or value.shape != (d,) or not value.is_floating_point():
        raise ValueError(f"expected a claimed value of shape {(d,)}, got {getattr(value, 'shape', type(value))}")
    least = max(quantum, _quantum(x.dtype), _quantum(value.dtype)) * math.sqrt(d)
    eps = max(eps, torch.finfo(x.dtype).eps, torch.finfo(value.dtype).eps)
    value = value.detach().to(x.device, torch.float64)
    squares = row_squares(x, value)
    if not np.isfinite(squares).all():
        require_finite(x)
        return math.inf, 0.0
    distances = np.sqrt(squares)
    influence = _influence(distances, w, tau)
    clipped_sum = math.sqrt(clipped_square(x, value, influence))
    unit = _unit(distances, w, tau)
    floor = _floor(norm(value), influence, distances, w, tau, eps, unit, least)
    return _relative(clipped_sum, unit), floor
