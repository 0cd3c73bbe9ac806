"""Phase verify: V1 (by aggregators), V2 and V3 (by everybody), and the residual of (CC) that a judge looks at.

Accusers act above twice a tolerance and judges convict above once, so rounding never costs an honest accuser.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import itemgetter
from statistics import median

import numpy as np
import torch

from btard.aggregation import residual_and_floor
from btard.protocol.config import ProtocolConfig
from btard.protocol.messages import Report
from btard.protocol.record import StepRecord

ACCUSE, CONVICT = 2.0, 1.0
"""Multiples of a tolerance: who accuses wants to be sure that the judges agree."""

SIGMAS = 6.0
"""V2 projects on random numbers with the tails of a Gaussian: six standard deviations off, nobody is honest."""

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


class Tally:
    """What counts of `reports` on the parts of `record`'s step: those of the announced senders that cover the part."""

    def __init__(self, record: StepRecord, reports: Mapping[int, Report]) -> None:
        self._record, self._reports = record, reports
        self._spoke = tuple(sorted(reports))
        self._partial = {i for i in self._spoke if reports[i].missing}
        self._norms: dict[tuple[int, ...], tuple[np.ndarray, list[float]]] = {}
        self._products: dict[tuple[tuple[int, ...], int], list[tuple[float, ...]]] = {}

    def senders(self, part: int) -> tuple[int, ...]:
        """The workers over which the sums for `part` run, ascending."""
        announced = self._record.announced[part].senders
        if announced == self._spoke and not self._partial:
            return announced
        return tuple(i for i in announced if i in self._reports and part not in self._reports[i].missing)

    def norms(self, part: int) -> np.ndarray:
        """norm_i[part] of the senders, float64."""
        return self._matrix(self.senders(part))[0][part]

    def typical(self, part: int) -> float:
        """Median of the reported norm_i[part]: the honest majority decides it. There has to be a sender."""
        return self._matrix(self.senders(part))[1][part]

    def total(self, part: int, direction: int) -> float:
        """sum_i s_i[part], correctly rounded; OverflowError for numbers that nobody honest reports."""
        senders = self.senders(part)
        if (senders, direction) not in self._products:
            rows = (map(itemgetter(direction), self._reports[i].products) for i in senders)
            self._products[senders, direction] = list(zip(*rows, strict=True))
        return math.fsum(self._products[senders, direction][part])

    def _matrix(self, senders: tuple[int, ...]) -> tuple[np.ndarray, list[float]]:
        """Norms [k, senders] and their medians over the senders: nearly always the same senders for all parts."""
        if senders not in self._norms:
            norms = np.array([self._reports[i].norms for i in senders]).T
            ordered, half = np.sort(norms, axis=1), len(senders) // 2
            low, high = ordered[:, -half - 1].tolist(), ordered[:, half].tolist()
            middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
            self._norms[senders] = norms, middle
        return self._norms[senders]


def residual_tolerance(config: ProtocolConfig, value: torch.Tensor, typical: float) -> float:
    """Relative residual of (CC) that V2 lets pass: the setting, and what rounding a [p] to float32 leaves.

    A rounding error e of `value` moves a typical row's clipped difference by e min(1, tau/typical); relative to
    min(tau, typical) that is e / typical for any tau.
    """
    if typical == 0:
        return math.inf
    return config.residual_tol + 2.0**-22 * float(torch.linalg.vector_norm(value)) / typical


def v2_violation(config: ProtocolConfig, record: StepRecord, tally: Tally, part: int, *, margin: float) -> bool:
    """V2: whether sum_i s_i[part] is farther from 0 than an honest aggregate allows, times `margin`."""
    senders = tally.senders(part)
    if part not in record.aggregates or not senders or not record.held(part):
        return False
    typical = tally.typical(part)
    try:
        largest = max(abs(tally.total(part, direction)) for direction in range(config.directions))
    except OverflowError:
        return True
    unit = margin * SIGMAS * len(senders) * min(record.tau, typical)
    # What rounding adds to the tolerance takes a read of the aggregate, and is nearly never needed.
    if largest <= unit * config.residual_tol:
        return False
    return largest > unit * residual_tolerance(config, record.aggregates[part], typical)


def far_off(config: ProtocolConfig, record: StepRecord, tally: Tally) -> float:
    """delta_max of this step: the setting, or what follows from the typical distances of all parts."""
    if config.delta_max is not None:
        return config.delta_max
    distances = [tally.typical(part) for part in record.announced if tally.senders(part)]
    return AUTO_DELTA * median(distances) if distances else math.inf


def v3_violation(record: StepRecord, tally: Tally, part: int, delta_max: float) -> bool:
    """V3: whether more than half of the workers that went in say that they are farther than delta_max from a[part]."""
    senders = tally.senders(part) if record.held(part) else ()
    return bool(senders) and 2 * int((tally.norms(part) > delta_max).sum()) > len(senders)


def suspicious_parts(config: ProtocolConfig, record: StepRecord, reports: Mapping[int, Report]) -> list[int]:
    """The parts whose aggregate V2 or V3 wants checked, by broadcasts alone: the same list for everybody."""
    tally = Tally(record, reports)
    delta_max = far_off(config, record, tally)
    return [
        part
        for part in sorted(record.announced)
        if v2_violation(config, record, tally, part, margin=ACCUSE) or v3_violation(record, tally, part, delta_max)
    ]


def aggregate_is_wrong(config: ProtocolConfig, value: torch.Tensor, x: torch.Tensor, tau: float) -> bool:
    """CheckAveraging: whether `value` [p] misses (CC) on the disclosed parts `x` [k, p] by more than is tolerated.

    `tau`: the clipping radius of the step that the parts are of.

    The floor is what rounding the honest solution to its dtype can leave; a value far from the solution has a small
    one.
    """
    residual, floor = residual_and_floor(x, value, tau)
    return residual > max(CONVICT * config.residual_tol, floor)
