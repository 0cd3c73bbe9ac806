"""Phase exchange, of ButterflyClip: every worker sends part j to its owner, which checks it against the commitment."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch

from btard.protocol import loads
from btard.protocol.effects import Effect
from btard.protocol.limits import packet_limit
from btard.protocol.messages import NOBODY, Packet
from btard.protocol.packets import find_packet, packet_fault
from btard.protocol.record import StepRecord
from btard.protocol.seat import Seat


def exchange(seat: Seat, record: StepRecord, gradient: torch.Tensor | None) -> Generator[Effect, Any, None]:
    """Send this peer's parts, keep the good ones that come for the parts it owns, remember the suspects.

    Communication: d (k-1)/k floats out of every worker.
    """
    outgoing: dict[int, list[Packet]] = {}
    if seat.id in record.workers and gradient is not None:
        behaviour, ctx, cut = seat.behaviour_at(record), seat.context(record), record.cut
        for part, owner in enumerate(record.owners):
            if owner == NOBODY:
                continue
            sent = behaviour.part(ctx, part, cut.view(gradient, part))
            if sent is None:
                continue
            # What an honest peer sends is what it committed to: no need to hash it again.
            known = None if behaviour.byzantine else record.commits[seat.id].digests[part]
            outgoing.setdefault(owner, []).append(seat.packet(record, "part", part, sent, hashed=known))
    mine = outgoing.pop(seat.id, [])
    own = [part for part, owner in enumerate(record.owners) if owner == seat.id]
    load = loads.of_parts(record, packet_limit(record, [0], "part"))
    arrived = yield from seat.send(record, "part", outgoing, limit=packet_limit(record, own, "part"), load=load)
    arrived = {**arrived, seat.id: mine}
    for part in own:
        record.received[part] = {}
        for sender in record.workers:
            packet = find_packet(arrived, sender, "part", record.step, part)
            fault = check_part(seat, record, packet, sender, part)
            if fault is None and packet is not None:
                record.received[part][sender] = packet
            elif fault is not None and sender != seat.id:
                record.suspects[fault, sender, part] = packet


def check_part(seat: Seat, record: StepRecord, packet: Packet | None, sender: int, part: int) -> str | None:
    """The kind of claim that `packet` justifies, None if it is the part that `sender` committed to."""
    return packet_fault(seat, record, packet, record.commits[sender].digests[part], part, "part")
