"""Phase exchange, of ButterflyClip: every worker sends part j to its owner, which checks it against the commitment."""

from __future__ import annotations

from collections.abc import Collection, Generator
from typing import Any

from btard.protocol import loads
from btard.protocol.behaviour import taken
from btard.protocol.commit import RollCall, call_roll
from btard.protocol.effects import Effect
from btard.protocol.hearing import AGAIN
from btard.protocol.limits import packet_limit
from btard.protocol.messages import NOBODY
from btard.protocol.packets import find_packet, packet_fault, sent_here
from btard.protocol.record import StepRecord
from btard.protocol.seat import Seat
from btard.protocol.signed import Packet


def exchange(seat: Seat, record: StepRecord, said: RollCall) -> Generator[Effect, Any, None]:
    """Send this peer's parts, keep the good ones that come for the parts it owns, remember the suspects.

    Along with the parts goes what was heard in the roll call, which is agreed on afterwards. If not all had heard the
    same, owners that this peer had not heard of get their parts then.
    Communication: d (k-1)/k floats out of every worker.
    """
    outgoing = _outgoing(seat, record, said, already=())
    own = [part for part, owner in enumerate(record.planned) if owner == seat.id]
    limit, load = packet_limit(record, own, "part"), loads.of_parts(record, packet_limit(record, [0], "part"))
    told = tuple(outgoing)
    mine = outgoing.pop(seat.id, [])
    arrived = yield from seat.send(record, "part", outgoing, limit=limit, load=load, before=[said.heard])
    call_roll(seat, record, said)
    if not said.heard.certified:
        late = _outgoing(seat, record, said, already=told)
        mine = [*mine, *late.pop(seat.id, [])]
        load = loads.of_parts(record, packet_limit(record, [0], "part"))
        more = yield from seat.send(record, f"part{AGAIN}", late, limit=limit, load=load)
        arrived = {sender: [*arrived.get(sender, ()), *more.get(sender, ())] for sender in {*arrived, *more}}
    arrived = {**arrived, seat.id: mine}
    for part in own if seat.id in record.workers else ():
        record.received[part] = {}
        for sender in record.workers:
            packet = find_packet(arrived, sender, "part", record.step, part)
            fault = check_part(seat, record, packet, sender, part)
            if fault is None and packet is not None:
                record.received[part][sender] = packet
            elif fault is not None and sender != seat.id:
                record.suspects[fault, sender, part] = packet


def _outgoing(seat: Seat, record: StepRecord, said: RollCall, already: Collection[int]) -> dict[int, list[Packet]]:
    """This peer's part for each owner, except those that have theirs `already`."""
    outgoing: dict[int, list[Packet]] = {}
    if seat.id not in record.workers or said.gradient is None:
        return outgoing
    seat.memory(sent_here, record.context)[seat.id] = said.gradient
    behaviour, ctx = seat.behaviour_at(record), seat.context(record)
    for part, (owner, mine) in enumerate(zip(record.owners, record.cut.views(said.gradient), strict=True)):
        if owner == NOBODY or owner in already:
            continue
        sent = taken(mine, behaviour.part(ctx, part, mine))
        if sent is None:
            continue
        # What an honest peer sends is what it committed to: no need to hash it again.
        known = None if behaviour.byzantine else record.commits[seat.id].digests[part]
        outgoing.setdefault(owner, []).append(seat.packet(record, "part", part, sent, hashed=known))
    return outgoing


def check_part(seat: Seat, record: StepRecord, packet: Packet | None, sender: int, part: int) -> str | None:
    """The kind of claim that `packet` justifies, None if it is the part that `sender` committed to."""
    return packet_fault(seat, record, packet, record.commits[sender].digests[part], part, "part")
