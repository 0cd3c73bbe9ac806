"""Section 3, phase 6: V1 (by aggregators), V2 and V3 (by everybody), and the residual of (CC) that a judge looks at.

Accusers act above twice a tolerance and judges convict above once, so rounding never costs an honest accuser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median

import torch

from btard.aggregation import residual_and_floor
from btard.protocol.config import ProtocolConfig
from btard.protocol.messages import Report
from btard.protocol.record import StepRecord

ACCUSE, CONVICT = 2.0, 1.0
"""Multiples of a tolerance: who accuses wants to be sure that the judges agree."""

SIGMAS = 6.0
"""V2 projects on a Gaussian: beyond six standard deviations of the tolerated residual nobody is honest."""

AUTO_DELTA = 10.0
"""delta_max = None: this many times the typical distance. Parts differ as layers do; a needless check costs time."""


def scalars_differ(
    reported_norm: float,
    reported: tuple[float, ...],
    norm: float,
    products: tuple[float, ...],
    tau: float,
    tol: float,
) -> bool:
    """V1: whether a report is off by more than `tol`, relative to norm and, for s, to the clipped difference.

    A dot product of p rounded terms errs in proportion to ||z|| ~ sqrt(p) times the difference at worst, to the
    difference itself in practice; `tol` has room for the latter.
    """
    scale = min(tau, norm)
    if abs(reported_norm - norm) > tol * norm:
        return True
    return any(abs(said - true) > 10 * tol * scale for said, true in zip(reported, products, strict=True))


def typical_distance(record: StepRecord, reports: Mapping[int, Report], part: int) -> float:
    """Median of the reported norm_i[part] over the workers that went in: the honest majority decides it."""
    return median(reports[i].norms[part] for i in counted(record, reports, part))


def counted(record: StepRecord, reports: Mapping[int, Report], part: int) -> list[int]:
    """The workers over which the sums for `part` run: announced as senders, with a report that covers the part."""
    return [i for i in record.announced[part].senders if i in reports and part not in reports[i].missing]


def residual_tolerance(config: ProtocolConfig, value: torch.Tensor, typical: float) -> float:
    """Relative residual of (CC) that V2 lets pass: the setting, and what rounding a [p] to float32 leaves.

    A rounding error e of `value` moves a typical row's clipped difference by e min(1, tau/typical); relative to
    min(tau, typical) that is e / typical for any tau.
    """
    if typical == 0:
        return math.inf
    return config.residual_tol + 2.0**-22 * float(torch.linalg.vector_norm(value)) / typical


def v2_violation(
    config: ProtocolConfig, record: StepRecord, reports: Mapping[int, Report], part: int, *, margin: float
) -> bool:
    """V2: whether sum_i s_i[part] is farther from 0 than an honest aggregate allows, times `margin`."""
    senders = counted(record, reports, part)
    if part not in record.aggregates or not senders or not record.held(part):
        return False
    typical = typical_distance(record, reports, part)
    tolerance = residual_tolerance(config, record.aggregates[part], typical)
    bound = margin * SIGMAS * len(senders) * tolerance * min(config.tau, typical)
    try:
        sums = [math.fsum(reports[i].products[part][q] for i in senders) for q in range(config.directions)]
    except OverflowError:  # of numbers that nobody honest reports
        return True
    return any(abs(total) > bound for total in sums)


def far_off(config: ProtocolConfig, record: StepRecord, reports: Mapping[int, Report]) -> float:
    """delta_max of this step: the setting, or what follows from the typical distances of all parts."""
    if config.delta_max is not None:
        return config.delta_max
    distances = [typical_distance(record, reports, j) for j in record.announced if counted(record, reports, j)]
    return AUTO_DELTA * median(distances) if distances else math.inf


def v3_violation(record: StepRecord, reports: Mapping[int, Report], part: int, delta_max: float) -> bool:
    """V3: whether more than half of the workers that went in say that they are farther than delta_max from a[part]."""
    senders = counted(record, reports, part) if record.held(part) else []
    return 2 * sum(reports[i].norms[part] > delta_max for i in senders) > len(senders)


def suspicious_parts(config: ProtocolConfig, record: StepRecord, reports: Mapping[int, Report]) -> list[int]:
    """The parts whose aggregate V2 or V3 wants checked, by broadcasts alone: the same list for everybody."""
    delta_max = far_off(config, record, reports)
    return [
        part
        for part in sorted(record.announced)
        if v2_violation(config, record, reports, part, margin=ACCUSE) or v3_violation(record, reports, part, delta_max)
    ]


def aggregate_is_wrong(config: ProtocolConfig, value: torch.Tensor, x: torch.Tensor) -> bool:
    """CheckAveraging: whether `value` [p] misses (CC) on the disclosed parts `x` [k, p] by more than is tolerated.

    The floor is what rounding the honest solution to its dtype can leave; a value far from the solution has a small
    one.
    """
    residual, floor = residual_and_floor(x, value, config.tau)
    return residual > max(CONVICT * config.residual_tol, floor)
