"""Minimise the Huber-type loss of CenteredClip over coefficients: O(n^3) per iteration, independent of d.

Every solution is a convex combination `v = sum_i p_i g_i`, and all distances `||g_i - v||` follow from p and a Gram
matrix of the rows about any centre. Legend: `G` Gram matrix, `w` weights, `D` distances, `a_i = w_i / max(tau, D_i)`
the pull of row i divided by D_i and tau, `A = sum a`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Relative size of the gradient at which coefficients in float64 cannot be improved.
_STOP = 1e-14
_TINY = 1e-300


@dataclass(frozen=True)
class _Point:
    p: np.ndarray
    moments: np.ndarray  # <g_i - v, g_j - v>
    distances: np.ndarray
    pull: np.ndarray  # a
    loss: float
    gradient: np.ndarray  # coefficients of the gradient, summing to zero
    size: float  # norm of the gradient


def _evaluate(p: np.ndarray, g: np.ndarray, w: np.ndarray, tau: float) -> _Point:
    # Rows of e_i - p sum to zero: the quadratic form then loses nothing when v comes close to a row.
    q = -np.broadcast_to(p, g.shape).copy()
    q.flat[:: len(p) + 1] += 1.0
    moments = q @ g @ q.T
    distances = np.sqrt(np.maximum(np.diag(moments), 0.0))
    # At a row with tau = 0 the pull is infinite: large enough will do, if its square is still finite.
    reach = np.maximum(np.maximum(distances, tau), 1e-140 * distances.max() + _TINY)
    pull = w / reach
    inside = distances * (distances / (2 * reach))
    loss = float(w @ np.where(distances > tau, distances - tau / 2, inside))
    # The norm from small coefficients: from the moments it would be a difference of large numbers.
    gradient = pull.sum() * p - pull
    size = float(np.sqrt(max(float(gradient @ g @ gradient), 0.0)))
    return _Point(p, moments, distances, pull, loss, gradient, size)


def _newton_step(point: _Point, tau: float) -> np.ndarray | None:
    """Coefficients of `-H^-1 grad`, H = A I - sum_clipped a_i u_i u_i^T with u_i = (v - g_i) / D_i.

    The components `u_i . step` solve a symmetric system of n unknowns. None if it is singular: then the loss is
    linear along a line (collinear rows, all clipped).
    """
    a, m = point.pull, point.moments
    total = a.sum()
    clipped = point.distances > tau
    inverse = np.divide(1.0, point.distances, out=np.zeros_like(a), where=clipped)
    root = np.where(clipped, np.sqrt(a), 0.0)
    with np.errstate(all="ignore"):  # near a row noise may overflow: the step is then dropped
        scaled = root * inverse
        system = -(m * scaled[:, None] * scaled)
        system.flat[:: len(a) + 1] += total * (1 + 1e-15)
        try:
            z = np.linalg.solve(system, -scaled * (m @ a))
        except np.linalg.LinAlgError:
            return None
        c = scaled * z
        step = (c.sum() * point.p - c - point.gradient) / total
    # The solution lies in the simplex: a step of such a size comes from a loss that is linear along a line.
    return step if float(np.abs(step).max()) < 1e6 else None


def _start(g: np.ndarray, w: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray, float]:
    """A robust start that treats all rows alike, and the row of the lowest loss as an alternative to it.

    Returns the start's coefficients, the best row's (ties share), and the loss at the best row.
    """
    squares = np.diag(g)
    distances = np.sqrt(np.maximum(squares[:, None] + squares[None, :] - 2 * g, 0.0))
    np.fill_diagonal(distances, 0.0)
    typical = np.median(distances[:, w > 0], axis=1)
    weights = w / np.maximum(np.maximum(typical, tau), 1e-12 * typical.max() + _TINY)
    reach = np.maximum(np.maximum(distances, tau), _TINY)
    losses = np.where(distances > tau, distances - tau / 2, distances * (distances / (2 * reach))) @ w
    lowest = float(losses.min())
    ties = (losses <= lowest * (1 + 1e-13)).astype(np.float64)
    return weights / weights.sum(), ties / ties.sum(), lowest


def _leave_row(point: _Point, w: np.ndarray) -> np.ndarray | None:
    """Coefficients of Vardi and Zhang's step (2000) away from the rows at which `point` lies.

    None if the others' pull does not exceed the weight there: then the geometric median is this very point.
    """
    here = point.distances <= 1e-14 * point.distances.max()
    others = np.where(here, 0.0, point.pull)
    pull = float(np.sqrt(max(float(others @ point.moments @ others), 0.0)))
    stay = float(w[here].sum()) / pull if pull > 0 else 1.0
    return None if stay >= 1 else stay * point.p + (1 - stay) * others / others.sum()


def solve(
    g: np.ndarray, w: np.ndarray, tau: float, max_iterations: int, start: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Coefficients p [n] >= 0, summing to one, of the minimiser of `sum_i w_i huber_tau(||g_i - v||)`.

    Newton's method on the loss, with a step of Weiszfeld's (reweighting, which always descends) wherever Newton's
    does not descend. It starts below the loss at every row, so that small tau meets no singularity.

    Args:
        g: [n, n] float64 Gram matrix of the rows about any centre; best conditioned about the solution.
        w: [n] weights.
        tau: clipping radius; 0 is the geometric median, inf the mean.
        max_iterations: bound on the iterations.
        start: coefficients to start from.

    Returns:
        the coefficients and the number of iterations.
    """
    if np.isinf(tau) or len(w) == 1:
        return w / w.sum(), 0
    symmetric, row, lowest = _start(g, w, tau)
    point = _evaluate(symmetric if start is None else start, g, w, tau)
    if lowest < point.loss * (1 - 1e-13):
        point = _evaluate(row, g, w, tau)
        away = _leave_row(point, w)
        if away is not None:
            trial = _evaluate(away, g, w, tau)
            point = trial if trial.loss < point.loss else point
        elif tau == 0:
            return row, 0
    for iteration in range(max_iterations):
        unit = float(w @ np.minimum(1.0, point.distances / tau)) if tau > 0 else float(w.sum())
        if point.size <= _STOP * unit:
            return point.p, iteration
        better = point
        step = _newton_step(point, tau)
        for factor in (1.0, 0.25, 0.0625):
            if step is None:
                break
            trial = _evaluate(point.p + factor * step, g, w, tau)
            close = trial.loss <= point.loss * (1 + 1e-14) and trial.size < 0.5 * point.size
            if close or trial.loss < point.loss * (1 - 1e-10):
                better = trial
                break
        # Weiszfeld's step descends from wherever Newton's led, and writes v as the combination a / A again, the one
        # whose gradient coefficients vanish with the gradient also where rows are linearly dependent.
        better = _evaluate(better.pull / better.pull.sum(), g, w, tau)
        if better.loss >= point.loss * (1 - 1e-15) and better.size >= 0.9 * point.size:
            return (better if better.size < point.size else point).p, iteration + 1
        point = better
    return point.p, max_iterations
