"""In mode `tolerant` a validator sees what its target committed to in the step before.

The target sends its parts; their hashes are its own commitments, so it does not matter from whom they come. Where the
target is away, the owners of its parts send what it had sent to them. A validator that is not shown all of that claims
"undisclosed" (`claims.py`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch

from btard.protocol import loads
from btard.protocol.effects import Effect
from btard.protocol.evidence import Piece, fits, own_pieces, parts_of
from btard.protocol.record import StepRecord
from btard.protocol.seat import Seat
from btard.protocol.signed import Packet


def disclose(seat: Seat, record: StepRecord, recomputed: torch.Tensor | None) -> Generator[Effect, Any, None]:
    """Send what validators must see of the step before; a validator keeps in `record.disclosed` what it is shown.

    `recomputed` [d]: the validator's own gradient of its target's batch. Whatever of it has the committed hash needs
    not be shown. Communication: d floats about every target.
    """
    last = seat.last
    if seat.config.validation == "exact" or last is None or not record.assignments:
        return
    outgoing = {
        validator: packets
        for validator, target in record.assignments.items()
        if validator in record.members and (packets := _held(seat, last, record, target))
    }
    limit = loads.packets(last, range(last.cut.k), "part")
    arrived = yield from seat.send(
        record, "disclose", outgoing, limit=limit, load=loads.of_disclosure(record, last, limit)
    )
    watched = record.assignments.get(seat.id)
    if watched is None or recomputed is None or watched not in last.commits:
        return
    pieces = [Piece("part", watched, last.step, part) for part in last.parts_to_show(watched, record)]
    table = own_pieces(seat, last, watched, recomputed)
    for packet in (packet for packets in arrived.values() for packet in packets):
        piece = Piece(packet.kind, packet.sender, packet.step, packet.part)
        if piece in pieces and piece not in table and fits(seat, last, piece, packet):
            table[piece] = packet
    for piece in pieces:  # and no others: judges are not shown them
        body = table[piece].body if piece in table else None
        if isinstance(body, torch.Tensor):
            record.disclosed[piece.part] = body


def _held(seat: Seat, last: StepRecord, record: StepRecord, target: int) -> Sequence[Packet]:
    """Which of `target`'s parts this peer must show: its own, or if the target is away, those it was sent."""
    if record.attends(target):
        return parts_of(last, target, last.own) if target == seat.id and last.own is not None else ()
    shown = last.parts_to_show(target, record)
    return [last.received[j][target] for j in shown if last.owner(j) == seat.id and target in last.received.get(j, {})]
