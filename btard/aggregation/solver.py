"""Minimise the Huber-type loss of CenteredClip over coefficients: O(n^3) per iteration, independent of d.

Every solution is a convex combination `v = sum_i p_i g_i`, and all distances `||g_i - v||` follow from p and a Gram
matrix of the rows about any centre. Legend: `G` Gram matrix, `w` weights, `D` distances, `a_i = w_i / max(tau, D_i)`
the pull of row i divided by D_i and tau, `A = sum a`; m problems of n rows.

A call costs more than the arithmetic in it. So several problems are solved side by side: each is a generator that
yields what it needs next, and `side_by_side` computes that for all of them in one call. Inside of it matrices are
multiplied and solved one by one: what a problem gets does not depend on the others, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

# Relative size of the gradient at which coefficients in float64 cannot be improved.
_STOP = 1e-14
_TINY = 1e-300
# Trials along a Newton step.
_SEARCH = 12
# Rows farther out than this many typical norms are reined in.
_REACH = 1e6


class _Problem:
    """The rows' Gram matrix, weights and tau, and what every point needs from them."""

    __slots__ = ("g", "nearest", "tau", "w")

    def __init__(self, g: np.ndarray, w: np.ndarray, tau: float) -> None:
        self.g, self.w, self.tau = g, w, tau
        # At a row with tau = 0 the pull is infinite: large enough will do, if its square is still finite.
        self.nearest = max(tau, 1e-140 * math.sqrt(float(g.diagonal().max())) + _TINY)


def _stack(arrays: Sequence[Any]) -> np.ndarray:
    """[m, ...] of m arrays; of a single one without a copy."""
    return np.asarray(arrays[0])[None] if len(arrays) == 1 else np.array(arrays)


R = TypeVar("R")
_Needed = tuple[Callable[[Sequence[_Problem], Sequence[Any]], Sequence[Any]], _Problem, Any]
"""A function of several problems and an argument for each; the problem and the argument for which it is needed."""
Solving = Generator[_Needed, Any, R]


def side_by_side(solving: Sequence[Solving[R]]) -> list[R]:
    """What each of `solving` returns. Problems of the same weights, the same object, are computed together."""
    results: dict[int, R] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(solving)))
    with np.errstate(all="ignore"):
        while answers:
            needed: dict[Any, list[tuple[int, _Problem, Any]]] = {}
            for index, answer in answers.items():
                try:
                    function, problem, argument = solving[index].send(answer)
                    alike = function, problem.tau, id(problem.w)
                    needed.setdefault(alike, []).append((index, problem, argument))
                except StopIteration as stop:
                    results[index] = stop.value
            answers = {}
            for (function, *_), questions in needed.items():
                indices, problems, arguments = zip(*questions, strict=True)
                answers |= zip(indices, function(problems, arguments), strict=True)
    return [results[index] for index in range(len(solving))]


class _Point(NamedTuple):
    """Coefficients p of a point v, and the terms of the loss there."""

    p: np.ndarray
    moments: np.ndarray
    """[n, n], <g_i - v, g_j - v>."""
    distances: np.ndarray
    """[n], D."""
    pull: np.ndarray
    """[n], a."""
    gradient: np.ndarray
    """[n], coefficients of the loss's gradient, summing to zero."""
    total: float
    """A."""
    size: float
    """Norm of the gradient."""
    unit: float
    """What that is relative to: the sum of the lengths that cancel in it."""
    loss: float

    def weiszfeld(self) -> np.ndarray:
        """Coefficients of the mean of the rows weighted by their pulls."""
        return self.pull / self.total


def _points(problems: Sequence[_Problem], coefficients: Sequence[np.ndarray]) -> list[_Point]:
    """The points of these coefficients."""
    p, g, w = _stack(coefficients), _stack([one.g for one in problems]), problems[0].w
    nearest = np.array([[one.nearest] for one in problems])
    # Rows of e_i - p sum to zero: the quadratic form then loses nothing when v comes close to a row.
    q = np.eye(len(w)) - p[:, None]
    moments = q @ g @ q.swapaxes(1, 2)
    distances = np.sqrt(np.maximum(moments.diagonal(0, 1, 2), 0.0))
    pull = w / np.maximum(distances, nearest)
    total = np.add.reduce(pull, 1)
    gradient = total[:, None] * p - pull
    # Its norm, from small coefficients: from the moments it would be a difference of large numbers.
    size = np.sqrt(np.maximum(gradient[:, None] @ g @ gradient[:, :, None], 0.0))
    unit = pull[:, None] @ distances[:, :, None]
    loss = w @ _huber(distances, problems[0].tau, nearest)[:, :, None]
    numbers = (one.ravel().tolist() for one in (total, size, unit, loss))
    return [_Point(*terms) for terms in zip(p, moments, distances, pull, gradient, *numbers, strict=True)]


def _huber(distances: np.ndarray, tau: float, nearest: np.ndarray) -> np.ndarray:
    """Losses of rows at `distances` from a point."""
    inside = distances * (distances / (2 * np.maximum(distances, nearest)))
    return np.where(distances > tau, distances - tau / 2, inside)


def distances_from(g: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Distances [n] of the rows, of Gram matrix `g` about any centre, from the point of coefficients `p`."""
    q = np.eye(len(p)) - p
    return np.sqrt(np.maximum(((q @ g) * q).sum(1), 0.0))


def _newton_steps(problems: Sequence[_Problem], points: Sequence[_Point]) -> list[np.ndarray | None]:
    """Coefficients of `-H^-1 grad`, H = A I - sum_clipped a_i u_i u_i^T with u_i = (v - g_i) / D_i, at each point.

    The components `u_i . step` solve a symmetric system of n unknowns. None if it is singular: then the loss is
    linear along a line (collinear rows, all clipped).
    """
    p, m, distances, a, gradient = (_stack([one[term] for one in points]) for term in range(5))
    total = np.array([[one.total] for one in points])
    # Near a row noise may overflow: the step is then dropped.
    scaled = np.sqrt(a) * (distances > problems[0].tau) / np.maximum(distances, _TINY)
    system = m * scaled[:, None] * -scaled[:, :, None]
    system.reshape(len(points), -1)[:, :: a.shape[1] + 1] += total * (1 + 1e-15)
    try:
        z = np.linalg.solve(system, -scaled[:, :, None] * (m @ a[:, :, None]))[:, :, 0]
    except np.linalg.LinAlgError:
        if len(points) == 1:
            return [None]
        return [_newton_steps([one], [point])[0] for one, point in zip(problems, points, strict=True)]
    c = scaled * z
    steps = (np.add.reduce(c, 1)[:, None] * p - c - gradient) / total
    # The solution lies in the simplex: a step of such a size comes from a loss that is linear along a line.
    return [step if largest < 1e6 else None for step, largest in zip(steps, np.abs(steps).max(1).tolist(), strict=True)]


def _along(point: _Point, step: np.ndarray, problem: _Problem) -> Solving[_Point]:
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
        trial = yield _points, problem, point.p + factor * step
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


def _starts(problems: Sequence[_Problem], _: Sequence[None]) -> list[tuple[np.ndarray, np.ndarray]]:
    """A robust start for each problem that treats all rows alike, and the losses at the rows.

    Each is its coefficients [n] and the loss at each row [n].
    """
    g, w, tau = _stack([one.g for one in problems]), problems[0].w, problems[0].tau
    nearest = np.array([[[one.nearest]] for one in problems])
    squares = g.diagonal(0, 1, 2)
    distances = np.sqrt(np.maximum(squares[:, :, None] + squares[:, None] - 2 * g, 0.0))
    distances.reshape(len(g), -1)[:, :: len(w) + 1] = 0.0
    typical = _median(distances[:, :, w > 0])
    weights = w / np.maximum(typical, np.maximum(tau, 1e-12 * typical.max(1, keepdims=True) + _TINY))
    starts = weights / np.add.reduce(weights, 1)[:, None]
    return list(zip(starts, _huber(distances, tau, nearest) @ w, strict=True))


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


def solving(
    g: np.ndarray,
    w: np.ndarray,
    tau: float,
    max_iterations: int,
    start: np.ndarray | None = None,
    stop: float = _STOP,
) -> Solving[tuple[np.ndarray, int]]:
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
    reins = _rein_in(g, w, tau)
    if reins is not None:
        reined = _Problem(g * reins * reins[:, None], w, tau)
        p, iterations = yield from _minimise(reined, max_iterations, None, stop)
        return p * reins, iterations
    # Coefficients that do not sum to one belong to another centre.
    fits = start is not None and abs(float(start.sum()) - 1) < 1e-9
    return (yield from _minimise(_Problem(g, w, tau), max_iterations, start if fits else None, stop))


def solve(g: np.ndarray, w: np.ndarray, tau: float, max_iterations: int, **options: Any) -> tuple[np.ndarray, int]:
    """`solving`, alone."""
    return side_by_side([solving(g, w, tau, max_iterations, **options)])[0]


def _minimise(
    problem: _Problem, max_iterations: int, start: np.ndarray | None, stop: float
) -> Solving[tuple[np.ndarray, int]]:
    """As `solving`, for rows that differ by less than `_REACH`: coefficients that sum to one, and iterations."""
    symmetric, losses = yield _starts, problem, None
    point = yield _points, problem, symmetric if start is None else start
    loss, lowest = point.loss, float(losses.min())
    if lowest < loss * (1 - 1e-13):
        ties = (losses <= lowest * (1 + 1e-13)).astype(np.float64)
        point = yield _points, problem, ties / ties.sum()
        away = _leave_row(point, problem.w)
        if away is None and problem.tau == 0:
            return point.p, 0
        if away is not None:
            trial = yield _points, problem, away
            point = trial if trial.loss < point.loss else point
        loss = point.loss
    for iteration in range(max_iterations):
        if point.size <= stop * point.unit:
            return point.p, iteration
        step = yield _newton_steps, problem, point
        better = point if step is None else (yield from _along(point, step, problem))
        if better.size <= stop * better.unit:
            return better.weiszfeld(), iteration + 1
        if better.size <= point.size / 10:
            point, loss = better, math.inf  # Newton's method is converging by itself
            continue
        # Weiszfeld's step descends from wherever Newton's led, and writes v as the combination a / A again, the one
        # whose gradient coefficients vanish with the gradient also where rows are linearly dependent.
        better = yield _points, problem, better.weiszfeld()
        if better.loss >= loss * (1 - 1e-15) and better.size >= 0.9 * point.size:
            return (better if better.size < point.size else point).p, iteration + 1
        point, loss = better, better.loss
    return point.p, max_iterations
