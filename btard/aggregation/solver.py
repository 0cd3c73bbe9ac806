"""Minimise the Huber-type loss of CenteredClip over coefficients: O(n^3) per iteration, independent of d.

Every solution is a convex combination `v = sum_i p_i g_i`, and all distances `||g_i - v||` follow from p and a Gram
matrix of the rows about any centre. Legend: `G` Gram matrix, `w` weights, `D` distances, `a_i = w_i / max(tau, D_i)`
the pull of row i divided by D_i and tau, `A = sum a`.
"""

from __future__ import annotations

import math

import numpy as np

# Relative size of the gradient at which coefficients in float64 cannot be improved.
_STOP = 1e-14
_TINY = 1e-300
# Trials along a Newton step.
_SEARCH = 12
# Rows farther out than this many typical norms are reined in.
_REACH = 1e6


class _Point:
    """Coefficients p of a point v, and the terms of the loss there."""

    __slots__ = ("distances", "gradient", "moments", "p", "pull", "size", "total", "unit")

    def __init__(self, p: np.ndarray, problem: _Problem) -> None:
        # Rows of e_i - p sum to zero: the quadratic form then loses nothing when v comes close to a row.
        q = problem.identity - p
        self.p = p
        self.moments = q @ problem.g @ q.T  # <g_i - v, g_j - v>
        self.distances = np.sqrt(np.maximum(self.moments.diagonal(), 0.0))
        self.pull = problem.w / np.maximum(self.distances, problem.nearest)  # a
        self.total = float(np.add.reduce(self.pull))  # A
        # Coefficients of the loss's gradient, summing to zero.
        self.gradient = self.total * p - self.pull
        # Its norm, from small coefficients: from the moments it would be a difference of large numbers.
        self.size = math.sqrt(max(float(self.gradient @ problem.g @ self.gradient), 0.0))
        # What the norm is relative to: the sum of the lengths that cancel in the gradient.
        self.unit = float(self.pull @ self.distances)

    def weiszfeld(self) -> np.ndarray:
        """Coefficients of the mean of the rows weighted by their pulls."""
        return self.pull / self.total


class _Problem:
    """The rows' Gram matrix, weights and tau, and what every point needs from them."""

    def __init__(self, g: np.ndarray, w: np.ndarray, tau: float) -> None:
        self.g, self.w, self.tau = g, w, tau
        self.identity = np.eye(len(w))
        # At a row with tau = 0 the pull is infinite: large enough will do, if its square is still finite.
        self.nearest = max(tau, 1e-140 * math.sqrt(float(g.diagonal().max())) + _TINY)

    def huber(self, distances: np.ndarray) -> np.ndarray:
        """Loss of rows at `distances` from a point."""
        tau = self.tau
        inside = distances * (distances / (2 * np.maximum(distances, self.nearest)))
        return np.where(distances > tau, distances - tau / 2, inside)

    def loss(self, point: _Point) -> float:
        return float(self.w @ self.huber(point.distances))


def distances_from(g: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Distances [n] of the rows, of Gram matrix `g` about any centre, from the point of coefficients `p`."""
    q = np.eye(len(p)) - p
    return np.sqrt(np.maximum(((q @ g) * q).sum(1), 0.0))


def _newton_step(point: _Point, tau: float) -> np.ndarray | None:
    """Coefficients of `-H^-1 grad`, H = A I - sum_clipped a_i u_i u_i^T with u_i = (v - g_i) / D_i.

    The components `u_i . step` solve a symmetric system of n unknowns. None if it is singular: then the loss is
    linear along a line (collinear rows, all clipped).
    """
    a, m, total = point.pull, point.moments, point.total
    # Near a row noise may overflow: the step is then dropped.
    scaled = np.sqrt(a) * (point.distances > tau) / np.maximum(point.distances, _TINY)
    system = m * scaled * -scaled[:, None]
    system.ravel()[:: len(a) + 1] += total * (1 + 1e-15)
    try:
        z = np.linalg.solve(system, -scaled * (m @ a))
    except np.linalg.LinAlgError:
        return None
    c = scaled * z
    step = (np.add.reduce(c) * point.p - c - point.gradient) / total
    # The solution lies in the simplex: a step of such a size comes from a loss that is linear along a line.
    return step if float(np.abs(step).max()) < 1e6 else None


def _along(point: _Point, step: np.ndarray, problem: _Problem) -> _Point:
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
        trial = _Point(point.p + factor * step, problem)
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


def _start(problem: _Problem) -> tuple[np.ndarray, np.ndarray]:
    """A robust start that treats all rows alike, and the losses at the rows.

    Returns the start's coefficients [n] and the loss at each row [n].
    """
    g, w = problem.g, problem.w
    squares = g.diagonal()
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * g, 0.0))
    distances.ravel()[:: len(w) + 1] = 0.0
    typical = _median(distances[:, w > 0])
    weights = w / np.maximum(typical, max(problem.tau, 1e-12 * float(typical.max()) + _TINY))
    return weights / np.add.reduce(weights), problem.huber(distances) @ w


def _median(values: np.ndarray) -> np.ndarray:
    """Median along the last axis; for few values several times faster than numpy's."""
    ordered = np.sort(values, axis=-1)
    count = ordered.shape[-1]
    return (ordered[..., (count - 1) // 2] + ordered[..., count // 2]) / 2


def _leave_row(point: _Point, w: np.ndarray) -> np.ndarray | None:
    """Coefficients of Vardi and Zhang's step (2000) away from the rows at which `point` lies.

    None if the others' pull does not exceed the weight there: then the geometric median is this very point.
    """
    here = point.distances <= 1e-14 * point.distances.max()
    others = np.where(here, 0.0, point.pull)
    pull = float(np.sqrt(max(float(others @ point.moments @ others), 0.0)))
    stay = float(w[here].sum()) / pull if pull > 0 else 1.0
    return None if stay >= 1 else stay * point.p + (1 - stay) * others / others.sum()


def _rein_in(g: np.ndarray, w: np.ndarray, tau: float) -> np.ndarray | None:
    """Factors in (0, 1] [n] that bring rows from beyond `_REACH` times the typical norm, or tau, back to there.

    A clipped row pulls by its direction alone, so this turns its pull by 1 / _REACH at most, and not at all once the
    centre is the solution. Without it the loss of a row at 1e20 would bury everybody else's in its rounding. None
    where no row is that far out.
    """
    norms = np.sqrt(g.diagonal())
    largest = float(norms.max())
    if largest <= _REACH * tau:
        return None
    reach = _REACH * max(float(_median(norms[w > 0])), tau)
    return reach / np.maximum(norms, reach) if 0 < reach < largest else None


def solve(
    g: np.ndarray,
    w: np.ndarray,
    tau: float,
    max_iterations: int,
    start: np.ndarray | None = None,
    stop: float = _STOP,
) -> tuple[np.ndarray, int]:
    """Coefficients p [n] >= 0 of the minimiser `v = c + sum_i p_i (g_i - c)` of `sum_i w_i huber_tau(||g_i - v||)`.

    They sum to one, except where rows are so far off that they had to be reined in towards the centre c. Newton's
    method on the loss with a line search, each step that gains little, and the last, followed by one of Weiszfeld's
    (reweighting, always downhill). It starts below the loss at every row, so that small tau meets no singularity.

    Args:
        g: [n, n] float64 Gram matrix of the rows about any centre c; best conditioned about the solution.
        w: [n] weights.
        tau: clipping radius; 0 is the geometric median, inf the mean.
        max_iterations: bound on the iterations.
        start: coefficients to start from.
        stop: size of the loss's gradient, relative to that of its terms, at which to stop.

    Returns:
        the coefficients and the number of iterations.
    """
    if math.isinf(tau) or len(w) == 1:
        return w / w.sum(), 0
    stop = max(stop, _STOP)
    with np.errstate(all="ignore"):
        reins = _rein_in(g, w, tau)
        if reins is not None:
            p, iterations = _minimise(_Problem(g * reins * reins[:, None], w, tau), max_iterations, None, stop)
            return p * reins, iterations
        # Coefficients that do not sum to one belong to another centre.
        fits = start is not None and abs(float(start.sum()) - 1) < 1e-9
        return _minimise(_Problem(g, w, tau), max_iterations, start if fits else None, stop)


def _minimise(problem: _Problem, max_iterations: int, start: np.ndarray | None, stop: float) -> tuple[np.ndarray, int]:
    """As `solve`, for rows that differ by less than `_REACH`: coefficients that sum to one, and iterations."""
    symmetric, losses = _start(problem)
    point = _Point(symmetric if start is None else start, problem)
    loss, lowest = problem.loss(point), float(losses.min())
    if lowest < loss * (1 - 1e-13):
        ties = (losses <= lowest * (1 + 1e-13)).astype(np.float64)
        point = _Point(ties / ties.sum(), problem)
        away = _leave_row(point, problem.w)
        if away is None and problem.tau == 0:
            return point.p, 0
        if away is not None:
            trial = _Point(away, problem)
            point = trial if problem.loss(trial) < problem.loss(point) else point
        loss = problem.loss(point)
    for iteration in range(max_iterations):
        if point.size <= stop * point.unit:
            return point.p, iteration
        step = _newton_step(point, problem.tau)
        better = point if step is None else _along(point, step, problem)
        if better.size <= stop * better.unit:
            return better.weiszfeld(), iteration + 1
        if better.size <= point.size / 10:
            point, loss = better, math.inf  # Newton's method is converging by itself
            continue
        # Weiszfeld's step descends from wherever Newton's led, and writes v as the combination a / A again, the one
        # whose gradient coefficients vanish with the gradient also where rows are linearly dependent.
        better = _Point(better.weiszfeld(), problem)
        better_loss = problem.loss(better)
        if better_loss >= loss * (1 - 1e-15) and better.size >= 0.9 * point.size:
            return (better if better.size < point.size else point).p, iteration + 1
        point, loss = better, better_loss
    return point.p, max_iterations
