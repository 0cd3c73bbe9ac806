"""Rules that select rows by their distances: Krum, Multi-Krum and Bulyan."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from btard.aggregation.checks import check_byzantine, check_matrix
from btard.aggregation.gram import chunks, squared_distances
from btard.aggregation.ranks import apply_network, network


def _scores(distances: np.ndarray, neighbours: int) -> np.ndarray:
    """Per row, the sum of the squared distances to its nearest `neighbours` other rows."""
    others = distances + np.diag(np.full(len(distances), np.inf))
    return np.sort(others, axis=1)[:, : max(neighbours, 0)].sum(axis=1)


def _checked_scores(x: Tensor, byzantine: int, rule: str) -> np.ndarray:
    n, f = len(x), check_byzantine(byzantine)
    if n <= 2 * f + 2:
        raise ValueError(f"{rule} needs n > 2 f + 2 rows: n = {n}, f = {f} requires at least {2 * f + 3}")
    return _scores(squared_distances(x), n - f - 2)


def krum(x: Tensor, byzantine: int) -> Tensor:
    """The row with the smallest sum of squared distances to its n - f - 2 nearest others: [d].

    Blanchard et al. (NeurIPS 2017), section 4. Ties go to the lower index. One pass in float64.

    Args:
        x: [n, d] float32 or float64.
        byzantine: f, the number of Byzantine rows to withstand.

    Raises:
        ValueError: bad shape or dtype, a row that is not finite, or n <= 2 f + 2.
    """
    x = check_matrix(x)
    return x[int(_checked_scores(x, byzantine, "krum").argmin())].clone()


def multi_krum(x: Tensor, byzantine: int, select: int | None = None) -> Tensor:
    """The mean of the `select` rows with the smallest Krum scores: [d]; n - f rows by default.

    Blanchard et al. (NeurIPS 2017), section 4, "Multi-Krum". Ties go to the lower index.

    Raises:
        ValueError: as `krum`; `select` not in 1..n.
    """
    x = check_matrix(x)
    scores = _checked_scores(x, byzantine, "multi_krum")
    select = len(x) - byzantine if select is None else select
    if not 1 <= select <= len(x):
        raise ValueError(f"multi_krum can select 1 to n = {len(x)} rows, got {select}")
    share = torch.zeros(len(x), dtype=x.dtype)
    share[np.argsort(scores, kind="stable")[:select]] = 1 / select
    return torch.mv(x.t(), share.to(x.device))


def bulyan_selection(distances: np.ndarray, f: int) -> list[int]:
    """The n - 2 f rows that Krum picks one after another, each removed before the next pick.

    Of m rows left, m - f - 2 neighbours count, but at least one while there is one: the last picks of the smallest
    feasible n would otherwise look at none.
    """
    left = list(range(len(distances)))
    chosen: list[int] = []
    while len(chosen) < len(distances) - 2 * f:
        scores = _scores(distances[np.ix_(left, left)], max(1, len(left) - f - 2))
        chosen.append(left.pop(int(scores.argmin())) if len(left) > 1 else left.pop())
    return sorted(chosen)


def _mean_around_median(lines: list[Tensor], keep: int) -> Tensor:
    """Per coordinate, the mean of the `keep` values nearest the median of the sorted `lines`.

    Nearest values are neighbours in order, so that this picks one of few windows: the window moves up as long as the
    value that would enter lies nearer the median than the one that would leave. Ties stay with the lower values.
    """
    count = len(lines)
    median = (lines[(count - 1) // 2] + lines[count // 2]) / 2
    window = torch.stack(lines[:keep]).sum(dim=0)
    best = window
    for start in range(count - keep):
        leaving, entering = lines[start], lines[start + keep]
        window = torch.stack(lines[start + 1 : start + 1 + keep]).sum(dim=0)
        # Once this fails it fails for all later windows: what leaves then lies ever nearer, what enters ever further.
        best = torch.where(entering - median < median - leaving, window, best)
    return best / keep


def bulyan(x: Tensor, byzantine: int) -> Tensor:
    """Bulyan of Krum (El Mhamdi, Guerraoui and Rouault, ICML 2018, section 4): [d] in the dtype of `x`.

    Krum, iterated, selects theta = n - 2 f rows; the result is, per coordinate, the mean of the beta = theta - 2 f
    selected values closest to the selected rows' median (for even theta the mean of the two middle values). Neighbours
    as in `bulyan_selection`. One pass in float64 for the distances, and a sorting network.

    Raises:
        ValueError: bad shape or dtype, a row that is not finite, or n < 4 f + 3.
    """
    x = check_matrix(x)
    n, f = len(x), check_byzantine(byzantine)
    if n < 4 * f + 3:
        raise ValueError(f"bulyan needs n >= 4 f + 3 rows: n = {n}, f = {f} requires at least {4 * f + 3}")
    chosen = bulyan_selection(squared_distances(x), f)
    theta = len(chosen)
    comparators = network(theta, 0, theta - 1, True)
    parts = list(chunks(x))
    scratch = x.new_empty(theta + 2, parts[0].stop)
    value = x.new_empty(x.shape[1])
    for part in parts:
        rows = [x[index, part] for index in chosen]
        value[part] = _mean_around_median(apply_network(rows, comparators, scratch), theta - 2 * f)
    return value
