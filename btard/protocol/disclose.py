"""In mode `tolerant` a validator sees what its target committed to in the step before.

The target sends its parts; their hashes are its own commitments, so it does not matter from whom they come. A validator
that is not shown all of them claims "undisclosed" (`claims.py`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch

from btard.protocol import loads
from btard.protocol.claims import Piece, committed_gradient, fits, own_pieces, parts_of
from btard.protocol.effects import Effect
from btard.protocol.messages import Packet
from btard.protocol.record import StepRecord
from btard.protocol.seat import Seat


def disclose(seat: Seat, record: StepRecord, recomputed: torch.Tensor | None) -> Generator[Effect, Any, None]:
    """Send my parts of the step before to my validator; as a validator keep in `record.disclosed` what I am shown.

    `recomputed` [d]: the validator's own gradient of its target's batch. Whatever of it has the committed hash needs
    not be shown. Communication: d floats from every target.
    """
    last = seat.last
    if seat.config.validation == "exact" or last is None or not record.assignments:
        return
    outgoing: dict[int, Sequence[Packet]] = {}
    for validator, target in record.assignments.items():
        if target == seat.id and last.own is not None and validator in record.members:
            outgoing[validator] = parts_of(last, seat.id, last.own)
    limit = loads.packets(last, range(last.cut.k))
    arrived = yield from seat.send(
        record, "disclose", outgoing, limit=limit, load=loads.of_disclosure(record, last, limit)
    )
    watched = record.assignments.get(seat.id)
    if watched is None or recomputed is None or watched not in last.commits:
        return
    table = own_pieces(seat, last, watched, recomputed)
    pieces = [Piece("part", watched, last.step, part) for part in range(last.cut.k)]
    for packet in arrived.get(watched, ()):
        piece = Piece(packet.kind, packet.sender, packet.step, packet.part)
        if piece in pieces and piece not in table and fits(seat, last, piece, packet):
            table[piece] = packet
    whole = committed_gradient(pieces, table, recomputed)
    if whole is not None:
        record.disclosed[watched] = whole
