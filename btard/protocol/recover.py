"""Aggregates that somebody lacks are passed on, and parts without a trustworthy one are skipped."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from btard.protocol import loads
from btard.protocol.behaviour import taken
from btard.protocol.effects import Effect
from btard.protocol.half import values_of
from btard.protocol.limits import packet_limit
from btard.protocol.messages import ELIMINATE_KINDS
from btard.protocol.packets import packet_fault
from btard.protocol.record import StepRecord
from btard.protocol.seat import Seat
from btard.protocol.signed import Packet
from btard.protocol.verify import Tally


def recover(seat: Seat, record: StepRecord, attempt: int) -> Generator[Effect, Any, None]:
    """A peer that holds a[j] forwards it to those in `record.missing`, which said that they lack it. Rarely needed.

    The hash makes the helper's honesty irrelevant: it can only help or not.
    """
    outgoing: dict[int, list[Packet]] = {}
    for recipient, parts in record.missing.items():
        for part in sorted(set(parts)):
            if recipient == seat.id or part not in record.aggregates or part not in record.announced:
                continue
            value = record.aggregates[part]
            body = taken(value, seat.behaviour_at(record).forward(seat.context(record), recipient, part, value))
            if body is not None:
                # The digest names the owner, so this is the owner's packet; its signature is not needed.
                body = record.cut.body("aggregate", body)
                packet = Packet("aggregate", record.owner(part), record.step, part, body, b"")
                outgoing.setdefault(recipient, []).append(packet)
    limit = packet_limit(record, set(record.missing.get(seat.id, ())) & set(record.announced), "aggregate")
    arrived = yield from seat.send(record, f"recover/{attempt}", outgoing, limit=limit, load=loads.of_recovery(record))
    for packets in arrived.values():
        for packet in packets:
            part = packet.part
            if part in record.aggregates or part not in record.announced or packet.kind != "aggregate":
                continue
            fault = packet_fault(seat, record, packet, record.announced[part].digest, part, "aggregate")
            if fault is None and isinstance(packet.body, torch.Tensor):
                record.aggregates[part] = values_of(packet.body)


def settle_missing(seat: Seat, record: StepRecord) -> Generator[Effect, Any, None]:
    """After the reports: skip the parts that no majority of the peers held, pass the others on once more.

    Whether a part counts has to follow from broadcasts: a hostile helper could give the last missing copy to some
    honest peers and not to others. Where a majority said before the coin that it had it, an honest peer did. Where more
    than b_t of these are left, one of them is honest, and has given it to all before they reported. Reports come too
    late to count holders: a hostile owner that then adds one honest holder to its fellows has a majority, and nobody
    else's report says how far off the aggregate is.

    A part that is skipped here is not held: some honest peers have its aggregate and others do not, and would judge a
    report on it differently.
    """
    members = record.members
    lacking = record.lacking(members)
    record.unheld |= {part for part in record.announced if len(members) - lacking[part] <= record.byzantine}
    record.skipped |= record.unheld
    if record.missing:
        yield from recover(seat, record, 1)


def settle_exclusions(record: StepRecord) -> None:
    """After the verdicts: skip parts on which so few report that all may be liars, and parts that leave a worker out.

    V2 and V3 have nothing to say on parts of which only liars report: where the honest workers are all away, or fall
    silent before they report, or where an owner leaves out all but its fellows and pays with a single elimination. A
    worker that fell out on its own may be missing.
    """
    tally = Tally(record, record.reports)
    for part, entry in record.announced.items():
        if len(tally.senders(part)) <= record.byzantine:
            record.skipped.add(part)
        left_out = set(record.workers) - set(entry.senders) if entry.senders != record.workers else ()
        if any(record.expelled.get(i) in (None, *ELIMINATE_KINDS) for i in left_out):
            record.skipped.add(part)
