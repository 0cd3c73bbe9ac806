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
# Trials along a Newton step.
_SEARCH = 12
# Rows farther out than this many typical norms are reined in.
_REACH = 1e6


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


def _along(point: _Point, step: np.ndarray, g: np.ndarray, w: np.ndarray, tau: float) -> _Point:
    """A point on the way from `point` along `step` at which the convex loss is lower; `point` if it never falls.

    Looks at the slope, not at the loss, whose digits end long before: where a row is just about to be clipped, Newton's
    step overshoots again and again, and the gain is below the rounding of the loss.
    """
    first = low = float(point.gradient @ point.moments @ step)
    if not first < 0:
        return point
    best, lower, upper, high = point, 0.0, 1.0, 0.0
    factor = 1.0
    for _ in range(_SEARCH):
        trial = _evaluate(point.p + factor * step, g, w, tau)
        slope = float(trial.gradient @ trial.moments @ step)
        if slope <= 0:  # all the way downhill
            best, lower, low = trial, factor, slope
            if factor == 1.0 or slope > first / 2:
                break
        else:
            if slope < -first / 2 and trial.size < best.size:
                return trial
            upper, high = factor, slope
        # Where the slope would vanish if it were linear, but well inside.
        share = min(max(low / (low - high), 0.1), 0.9)
        factor = lower + share * (upper - lower)
    return best


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


def _rein_in(g: np.ndarray, w: np.ndarray, tau: float) -> np.ndarray:
    """Factors in (0, 1] [n] that bring rows from beyond `_REACH` times the typical norm, or tau, back to there.

    A clipped row pulls by its direction alone, so this turns its pull by 1 / _REACH at most, and not at all once the
    centre is the solution. Without it the loss of a row at 1e20 would bury everybody else's in its rounding.
    """
    norms = np.sqrt(np.diag(g))
    reach = _REACH * max(float(np.median(norms[w > 0])), tau)
    return reach / np.maximum(norms, reach) if reach > 0 else np.ones_like(norms)


def solve(
    g: np.ndarray, w: np.ndarray, tau: float, max_iterations: int, start: np.ndarray | None = None
) -> tuple[np.ndarray, int]:
    """Coefficients p [n] >= 0 of the minimiser `v = c + sum_i p_i (g_i - c)` of `sum_i w_i huber_tau(||g_i - v||)`.

    They sum to one, except where rows are so far off that they had to be reined in towards the centre c. Newton's
    method on the loss with a line search, each step followed by one of Weiszfeld's (reweighting, always downhill). It
    starts below the loss at every row, so that small tau meets no singularity.

    Args:
        g: [n, n] float64 Gram matrix of the rows about any centre c; best conditioned about the solution.
        w: [n] weights.
        tau: clipping radius; 0 is the geometric median, inf the mean.
        max_iterations: bound on the iterations.
        start: coefficients to start from.

    Returns:
        the coefficients and the number of iterations.
    """
    if np.isinf(tau) or len(w) == 1:
        return w / w.sum(), 0
    reins = _rein_in(g, w, tau)
    if float(reins.min()) < 1:
        p, iterations = _minimise(g * reins * reins[:, None], w, tau, max_iterations, None)
        return p * reins, iterations
    # Coefficients that do not sum to one belong to another centre.
    fits = start is not None and abs(float(start.sum()) - 1) < 1e-9
    return _minimise(g, w, tau, max_iterations, start if fits else None)


def _minimise(
    g: np.ndarray, w: np.ndarray, tau: float, max_iterations: int, start: np.ndarray | None
) -> tuple[np.ndarray, int]:
    """As `solve`, for rows that differ by less than `_REACH`: coefficients that sum to one, and iterations."""
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
        step = _newton_step(point, tau)
        better = point if step is None else _along(point, step, g, w, tau)
        # Weiszfeld's step descends from wherever Newton's led, and writes v as the combination a / A again, the one
        # whose gradient coefficients vanish with the gradient also where rows are linearly dependent.
        better = _evaluate(better.pull / better.pull.sum(), g, w, tau)
        if better.loss >= point.loss * (1 - 1e-15) and better.size >= 0.9 * point.size:
            return (better if better.size < point.size else point).p, iteration + 1
        point = better
    return point.p, max_iterations
