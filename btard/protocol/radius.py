"""The clipping radius with `tau: auto`: taken from what the workers broadcast in the step before, so all have the same.

It scales with the gradients, which no fixed radius does, and liars cannot carry it out of the honest range: see
docs/protocol.md.
"""

from __future__ import annotations

import math

import numpy as np

from btard.protocol.config import ProtocolConfig
from btard.protocol.record import StepRecord
from btard.protocol.verify import Tally


def next_radius(config: ProtocolConfig, record: StepRecord) -> float:
    """The clipping radius of the step after the finished `record`: the same bits at every peer, `record.tau` if fixed.

    Of each part, the `tau_quantile` of the reported distances ||g_i[j] - a[j]||; of these values, the lower median over
    the parts. Both are entries of a report as they stand there: nothing is interpolated. Two stages, because a hostile
    owner decides on all distances to its part, and fewer than half of the parts are hostile; in one pool the distances
    of liars and those to hostile parts would together be the majority.

    Skipped parts, those of owners and the reports of workers that fell out in the step do not count. Where liars may be
    so many that one of these numbers could be theirs, because others are away, it only draws the radius nearer
    (`drawn_near`); where all could be theirs, or most distances are zero, the radius stays.
    """
    if config.tau != "auto":
        return record.tau
    liars = record.byzantine
    tally = Tally(record, {i: said for i, said in record.reports.items() if i not in record.expelled})
    radii: list[float] = []
    for part in record.announced:
        if part in record.skipped or record.owner(part) in record.expelled or not record.held(part):
            continue
        norms = tally.norms(part)
        if config.tau_quantile * len(norms) > liars:
            radii.append(lower_quantile(norms, config.tau_quantile))
        elif len(norms) > liars:
            radii.append(drawn_near(record.tau, norms, liars))
    values = np.array(radii)
    if len(values) > 2 * liars:
        radius = lower_quantile(values, 0.5)
    else:
        radius = drawn_near(record.tau, values, liars) if len(values) > liars else 0.0
    return radius if radius > 0 else record.tau


def drawn_near(tau: float, values: np.ndarray, liars: int) -> float:
    """`tau`, moved to the range of the honest `values` [n] as far as these can prove it, n > `liars`.

    The (liars + 1)-th smallest is no less than some honest value, so the radius can come down to it; the (liars + 1)-th
    largest is no more than some honest one, so the radius can go up to it. Where more than `liars` of the values are
    honest, both lie within the honest range.
    """
    ascending = np.sort(values)
    highest = float(ascending[liars])
    lowest = min(highest, float(ascending[len(values) - liars - 1]))
    return min(max(tau, lowest), highest)


def lower_quantile(values: np.ndarray, level: float) -> float:
    """The least entry of `values` [n] that a share of at least `level`, in (0, 1], of them does not exceed; n > 0."""
    rank = max(1, math.ceil(level * len(values)))
    return float(np.partition(values, rank - 1)[rank - 1])
