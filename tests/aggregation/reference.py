"""The slow truth: textbook definitions in float64, one line per symbol."""

from __future__ import annotations

import numpy as np


def reference_centered_clip(x, tau, weights=None, start=None, iterations=200_000, tol=1e-13):
    """The iteration of the paper, v <- v + sum_i w_i (g_i - v) min(1, tau / D_i) / sum w, in float64."""
    x = np.asarray(x, dtype=np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    w = w / w.sum()
    v = np.median(x, axis=0) if start is None else start
    for _ in range(iterations):
        differences = x - v
        distances = np.sqrt((differences**2).sum(1))
        step = (w * np.minimum(1.0, tau / np.maximum(distances, 1e-300))) @ differences
        v = v + step
        if np.linalg.norm(step) <= tol * min(tau, np.median(distances)):
            break
    return v


def reference_residual(x, v, tau, weights=None):
    x, v = np.asarray(x, dtype=np.float64), np.asarray(v, dtype=np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    distances = np.sqrt(((x - v) ** 2).sum(1))
    total = (w * np.minimum(1.0, tau / np.maximum(distances, 1e-300))) @ (x - v)
    return np.linalg.norm(total) / (w.sum() * min(tau, np.median(distances[w > 0])))


def reference_krum_scores(x, f):
    x = np.asarray(x, dtype=np.float64)
    scores = []
    for i in range(len(x)):
        others = sorted(((x[i] - x[j]) ** 2).sum() for j in range(len(x)) if j != i)
        scores.append(sum(others[: len(x) - f - 2]))
    return np.array(scores)


def reference_bulyan(x, f):
    x = np.asarray(x, dtype=np.float64)
    left, chosen = list(range(len(x))), []
    while len(chosen) < len(x) - 2 * f:
        best, best_score = None, np.inf
        for i in left:
            others = sorted(((x[i] - x[j]) ** 2).sum() for j in left if j != i)
            score = sum(others[: max(1, len(left) - f - 2)])
            if score < best_score:
                best, best_score = i, score
        left.remove(best)
        chosen.append(best)
    selected = np.sort(x[chosen], axis=0)
    median = np.median(selected, axis=0)
    order = np.argsort(np.abs(selected - median), axis=0, kind="stable")
    return np.take_along_axis(selected, order[: len(chosen) - 2 * f], axis=0).mean(0)
