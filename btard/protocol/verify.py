"""V1 (by owners), V2 and V3 (by everybody): what reports say about aggregates, and how judges check an aggregate.

Accusers act above twice a tolerance and judges convict above once, so rounding never costs an honest accuser. An alarm
of V2 or V3 follows from broadcasts alone: it accuses nobody, it puts the part on trial.

`b` is how many of the members may still be Byzantine (`StepRecord.byzantine`). No median decides: where it matters
that a number is not a liar's, it is the (b + 1)-th largest one, which is at most an honest one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from btard.aggregation import centered_clip, residual_and_floor
from btard.protocol import half
from btard.protocol.config import ProtocolConfig
from btard.protocol.memory import NOTHING, Memory, remembered
from btard.protocol.messages import Claim, Report
from btard.protocol.record import StepRecord
from btard.protocol.scalars import SMALL, Scalars, received_scalars
from btard.protocol.seat import ACCUSE, CONVICT, Seat

SIGMAS = 6.0
"""V2 projects on random numbers with the tails of a Gaussian: no honest peer is six standard deviations off."""

AUTO_DELTA = 10.0
"""V3, delta_max = None: an aggregate is far off if it is farther away than this many sizes of a gradient's part."""

ROUNDING = 2.0**-22
"""How much rounding an aggregate's entries to float32 can change the sum of V2, relative to the aggregate."""
QUANTUM = 2.0**-149
"""The smallest float32: how much rounding changes an entry, however small the entry is."""


def verify(seat: Seat, record: StepRecord) -> list[Claim]:
    """The claims that follow from what I received, and from V1 on the parts I own."""
    claims = [Claim(record.step, accused, kind, part) for kind, accused, part in record.suspects]
    for part, packets in record.received.items():
        if not packets or part not in record.announced or part not in record.aggregates or not record.held(part):
            continue
        if part not in record.truths:
            record.truths[part] = received_scalars(seat, record, part)
        truth = record.truths[part]
        tol = ACCUSE * seat.config.scalar_tol
        senders = set(record.announced[part].senders) - {seat.id}
        for sender, true in sorted(truth.items()):
            said = record.reports.get(sender)
            if said is None or sender not in senders or part in said.missing:
                continue
            if scalars_differ(reported(said, part), true, record.tau, tol):
                claims.append(Claim(record.step, sender, "misreport", part))
    return claims


def scalars_differ(said: Scalars, true: Scalars, tau: float, tol: float, apart: float = 0.0) -> bool:
    """V1: whether a report is off by more than `tol`, relative to norm, size and, for s, to the clipped difference.

    A dot product of p rounded terms errs in proportion to ||z|| ~ sqrt(p) times the difference at worst, to the
    difference itself in practice; `tol` has room for the latter. Sizes below `SMALL` count as zero.

    `apart`: how far the reporter's part may be from the one that `true` is of. No norm differs by more, nor does a
    clipped difference; and z was drawn when both were fixed.
    """
    if abs(said.norm - true.norm) > apart + tol * true.norm:
        return True
    if abs(said.size - true.size) > apart + tol * true.size + SMALL:
        return True
    room = SIGMAS * apart + 10 * tol * min(tau, true.norm)
    return any(abs(a - b) > room for a, b in zip(said.products, true.products, strict=True))


def reported(report: Report, part: int) -> Scalars:
    """What `report` says about `part`."""
    return Scalars(report.norms[part], report.products[part], report.sizes[part])


class Tally:
    """The `reports` that count on the parts of `record`'s step: those of the announced senders that cover the part."""

    def __init__(self, record: StepRecord, reports: Mapping[int, Report]) -> None:
        self.byzantine = record.byzantine
        self._record, self._reports = record, reports
        self._spoke = tuple(sorted(reports))
        self._partial = {i for i in self._spoke if reports[i].missing}
        self._columns: dict[tuple[tuple[int, ...], str], np.ndarray] = {}

    def senders(self, part: int) -> tuple[int, ...]:
        """The workers over which the sums for `part` run, ascending."""
        announced = self._record.announced[part].senders
        if announced == self._spoke and not self._partial:
            return announced
        return tuple(i for i in announced if i in self._reports and part not in self._reports[i].missing)

    def norms(self, part: int) -> np.ndarray:
        """norm_i[part] of the senders, float64."""
        return self._column("norms", part)

    def norm(self, part: int) -> float:
        """At most the largest norm_i[part] that an honest sender reported."""
        return self._honest(self._column("norms", part))

    def size(self, part: int) -> float:
        """At most the largest ||g_i[part]|| that an honest sender reported."""
        return self._honest(self._column("sizes", part))

    def reach(self, part: int) -> float:
        """At most an honest sender's norm and size together; at least ||a[part]||, if b + 1 senders are honest."""
        return self._honest(self._column("norms", part) + self._column("sizes", part))

    def total(self, part: int, direction: int) -> float:
        """sum_i s_i[part], correctly rounded; OverflowError for numbers that no honest peer reports."""
        return math.fsum(self._column("products", part)[:, direction])

    def _honest(self, values: np.ndarray) -> float:
        """The (b + 1)-th largest of `values`, the smallest if there are fewer; 0 if there is none."""
        if not len(values):
            return 0.0
        rank = min(self.byzantine, len(values) - 1)
        return float(-np.partition(-values, rank)[rank])

    def _column(self, what: str, part: int) -> np.ndarray:
        """[senders] or, of products, [senders, directions]: nearly always the same senders for all parts."""
        senders = self.senders(part)
        if (senders, what) not in self._columns:
            table = np.array([getattr(self._reports[i], what) for i in senders], dtype=np.float64)
            self._columns[senders, what] = table.swapaxes(0, 1) if len(senders) else table
        return self._columns[senders, what][part] if len(senders) else np.empty(0)


def v2_violation(config: ProtocolConfig, record: StepRecord, tally: Tally, part: int, *, margin: float) -> bool:
    """V2: whether sum_i s_i[part] is farther from 0 than an honest aggregate allows, times `margin`.

    The owner may miss (CC) by `residual_tol` of a clipped difference per sender, and rounds a[j] to float32 or as it
    travels, by which a sender's clipped difference changes as much as a[j] where it is not clipped, and by less where
    it is.
    """
    senders = tally.senders(part)
    if not senders or not record.held(part):
        return False
    try:
        largest = max(abs(tally.total(part, direction)) for direction in range(config.directions))
    except OverflowError:
        return True
    unit, norm = margin * SIGMAS * len(senders), tally.norm(part)
    clipped = min(record.tau, norm)
    halved = "aggregate" in config.halved
    rounding, quantum = (ROUNDING + half.ROUNDING, half.QUANTUM) if halved else (ROUNDING, QUANTUM)
    moved = rounding * tally.reach(part) + quantum * math.sqrt(record.cut.size(part))
    return largest > unit * (config.residual_tol * clipped + moved * (clipped / norm if norm > 0 else 1.0))


def far_off(config: ProtocolConfig, tau: float, tally: Tally, part: int) -> float:
    """delta_max of `part`: the setting; or a bound that no right aggregate exceeds if most of its rows are honest.

    It lies among them but for what liars can pull, which is less than `tau`.
    """
    if config.delta_max is not None:
        return config.delta_max
    return AUTO_DELTA * tally.size(part) + tau


def v3_violation(config: ProtocolConfig, record: StepRecord, tally: Tally, part: int) -> bool:
    """V3: whether all honest workers that went in may have said that they are farther than delta_max from a[part]."""
    senders = tally.senders(part) if record.held(part) else ()
    if not senders:
        return False
    far = int((tally.norms(part) > far_off(config, record.tau, tally, part)).sum())
    return far >= max(1, len(senders) - record.byzantine)


@dataclass
class _Alarms:
    """The parts that are put on trial. None: nobody has checked yet."""

    parts: frozenset[int] | None = None
    said: tuple[object, ...] = ()
    """What they follow from: kept, so that no other object gets its id."""


@remembered(4)
def _alarms(
    config: ProtocolConfig,
    margin: float,
    tau: float,
    byzantine: int,
    sizes: tuple[int, int],
    announced: tuple[int, ...],
    unheld: frozenset[int],
    reports: tuple[int, ...],
    said: tuple[int, ...],
) -> _Alarms:
    """All that alarms depend on; `sizes`: d and k; `said`: the ids of what was announced and reported."""
    return _Alarms()


def alarms(config: ProtocolConfig, record: StepRecord, *, margin: float, memory: Memory = NOTHING) -> frozenset[int]:
    """The parts of `record`'s step that V2 or V3 puts on trial, by broadcasts alone: the same for all honest peers."""
    said = (*record.announced.values(), *record.reports.values())
    about = tuple(record.announced), record.unheld, tuple(record.reports), tuple(map(id, said))
    sizes = record.cut.d, record.cut.k
    found = memory(_alarms, config, margin, record.tau, record.byzantine, sizes, *about)
    if found.parts is None:
        found.said = said
        tally = Tally(record, record.reports)
        found.parts = frozenset(
            part
            for part in record.announced
            if v2_violation(config, record, tally, part, margin=margin) or v3_violation(config, record, tally, part)
        )
    return found.parts


def aggregate_is_right(
    config: ProtocolConfig, value: torch.Tensor, x: torch.Tensor, tau: float, *, margin: float = CONVICT
) -> bool:
    """CheckAveraging: whether `value` [p] is CenteredClip of the agreed rows x [k, p], by ascending sender.

    Equal bits acquit in both modes. Mode `exact`: and nothing else does. Mode `tolerant`: so does a value that solves
    (CC) up to `margin` times the tolerance, or to what rounding leaves. `tau`: the clipping radius of the step that the
    parts are of.
    """
    halved = "aggregate" in config.halved
    right = centered_clip(x, tau, tol=config.tol).value
    right = half.from_half(half.to_half(right)) if halved else right
    same = right.dtype == value.dtype and torch.equal(right.view(torch.int32), value.view(torch.int32))
    if same and margin >= CONVICT:  # below that equal bits say nothing: another machine's are others
        return True
    if config.validation == "exact":
        return False
    eps, quantum = (2 * half.ROUNDING, half.QUANTUM) if halved else (0.0, 0.0)
    residual, floor = residual_and_floor(x, value, tau, eps=eps, quantum=quantum)
    return residual <= max(margin * config.residual_tol, floor)
