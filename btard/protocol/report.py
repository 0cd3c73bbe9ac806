"""Phase report of Algorithm 1: the coin gives the directions z[j]; every worker reports norm_i[j] and s_i[j]."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch

from btard.protocol.coin import Tossed, guess, settle
from btard.protocol.effects import Effect
from btard.protocol.hearing import AGAIN, Heard, Hearing, well_formed
from btard.protocol.memory import Memory
from btard.protocol.messages import Report
from btard.protocol.record import StepRecord
from btard.protocol.scalars import gradient_report, own_report
from btard.protocol.seat import Seat


def report(
    seat: Seat, record: StepRecord, gradient: torch.Tensor | None, tossed: Tossed
) -> Generator[Effect, Any, Heard]:
    """Broadcast this peer's norms and products, as what is `tossed` gives the directions; what everybody said.

    Along with it goes what was heard of the reveals, which is agreed on afterwards. If not all had heard the same, or
    the coin has to be tossed again, all report again.
    """
    coin = guess(seat, record, tossed)
    record.coin = coin or b""
    honest = _honest(seat, record, gradient) if coin else None
    heard = yield from _say(seat, record, honest, before=[] if tossed.reveals is None else [tossed.reveals])
    first = yield from settle(seat, record, tossed)
    if tossed.reveals is None or (first and tossed.reveals.certified):
        return heard
    seat.void(record, heard, certified=tossed.reveals.certified)
    if record.coin != coin:
        honest = _honest(seat, record, gradient)
    return (yield from _say(seat, record, honest, again=True))


def _honest(seat: Seat, record: StepRecord, gradient: torch.Tensor | None) -> Report | None:
    if seat.id not in record.workers or gradient is None:
        return None
    if gradient is record.own and not seat.behaviour_at(record).byzantine:
        return own_report(seat, record, gradient)
    return gradient_report(seat, record, record.aggregates, seat.id, gradient)


def _say(
    seat: Seat, record: StepRecord, honest: Report | None, *, before: Sequence[Heard] = (), again: bool = False
) -> Generator[Effect, Any, Heard]:
    said = None if honest is None else seat.behaviour_at(record).report(seat.context(record), honest)
    return (yield from seat.say(record, f"report{AGAIN * again}", Report, said, before=before))


def take_reports(seat: Seat, record: StepRecord, heard: Heard) -> None:
    """Keep everybody's reports, on which all agree."""
    assert heard.agreed is not None
    said = seat.settled(record, heard, Report, expected=record.workers)
    fit = _fitting(seat, record, heard.agreed, heard.limit)
    record.reports = {sender: message for sender, message in said.items() if sender in fit}
    for sender in said:
        if sender not in fit:
            seat.expel(record, sender, "malformed_report")


def reports_so_far(seat: Seat, record: StepRecord, heard: Heard) -> None:
    """Keep the reports that this peer has heard itself."""
    said, fit = seat.so_far(record, heard, Report), _fitting(seat, record, heard.direct, heard.limit)
    record.reports = {sender: message for sender, message in said.items() if sender in fit}


def _fitting(seat: Seat, record: StepRecord, heard: Hearing, limit: int) -> frozenset[int]:
    """The senders whose report, among those that were `heard`, an honest worker could say in their place."""
    expected = record.cut.k, seat.config.directions, tuple(record.missing.items())
    return heard.once(_possible, *expected, limit, seat.memory)


def _possible(
    heard: Hearing,
    k: int,
    directions: int,
    missing: tuple[tuple[int, tuple[int, ...]], ...],
    limit: int,
    memory: Memory,
) -> frozenset[int]:
    """The senders of reports that an honest worker could say in their place; `missing`: what each lacks, as it said."""
    said, lacking = heard.once(well_formed, tuple(heard.said), Report, limit, memory), dict(missing)
    return frozenset(
        sender
        for sender, report in said.items()
        if len(report.norms) == len(report.sizes) == len(report.products) == k
        and min(report.norms) >= 0
        and min(report.sizes) >= 0
        and set(map(len, report.products)) == {directions}
        # Only a worker that lacked an aggregate before the coin, and owes an accusation for it, need not report on it.
        and set(report.missing) <= set(lacking.get(sender, ()))
    )
