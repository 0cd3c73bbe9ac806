"""The pieces of evidence of a trial: packets, each of which is what somebody committed to or signed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from btard.protocol.half import values_of
from btard.protocol.messages import NOBODY
from btard.protocol.packets import packet_fault
from btard.protocol.record import Settled, StepRecord
from btard.protocol.seat import Seat
from btard.protocol.signed import Packet
from btard.protocol.validate import Work, work_shown


class Piece(NamedTuple):
    """One packet that a judge needs: of `kind` ("part" or "aggregate"), made by `author` at `step`, about `part`.

    Either it is what its author committed to, or (`by`: the accuser that has to show it) its author's signed packet
    that is not.
    """

    kind: str
    author: int
    step: int
    part: int
    by: int = NOBODY


Table = Mapping[Piece, Packet]
"""The pieces that a judge has, each checked by `fits`."""


def fits(seat: Seat, about: StepRecord, piece: Piece, packet: Packet) -> bool:
    """Whether `packet` is that piece; limits its size to that of the part before anything is read."""
    if (packet.kind, packet.sender, packet.step, packet.part) != piece[:4]:
        return False
    owner = piece.kind == "aggregate"
    committed = about.announced[piece.part].digest if owner else about.commits[piece.author].digests[piece.part]
    fault = packet_fault(seat, about, packet, committed, piece.part, piece.kind)
    return fault is None if piece.by == NOBODY else fault == f"bad_{piece.kind}"


def announced_aggregate(about: Settled, part: int) -> Piece:
    """a[j], as its owner announced it: its hash was agreed on, so it is evidence like any commitment."""
    return Piece("aggregate", about.owner(part), about.step, part)


def values_shown(pieces: Sequence[Piece], table: Table) -> list[torch.Tensor] | None:
    """The values of `pieces`; None unless the judge has all."""
    found = [table[piece].body for piece in pieces if piece in table]
    tensors = [values_of(body) for body in found if isinstance(body, torch.Tensor)]
    return tensors if len(tensors) == len(pieces) else None


def parts_of(about: StepRecord, author: int, gradient: torch.Tensor) -> list[Packet]:
    """All parts of the committed `gradient` [d]. Unsigned: the committed hashes prove them."""
    bodies = (about.cut.body("part", part) for part in about.cut.views(gradient))
    return [Packet("part", author, about.step, part, body, b"") for part, body in enumerate(bodies)]


def own_pieces(seat: Seat, about: StepRecord, author: int, gradient: torch.Tensor) -> dict[Piece, Packet]:
    """The pieces of `author`'s work that this peer has, because its own `gradient` [d] has their hashes."""
    committed = about.commits[author].digests
    mine = seat.commitments.parts(author, about.step, gradient, about.cut)
    return {
        Piece("part", author, about.step, packet.part): packet
        for packet in parts_of(about, author, gradient)
        if mine[packet.part] == committed[packet.part]
    }


def committed_work(about: Settled, author: int, table: Table, own: torch.Tensor) -> Work:
    """What `author` committed to, as far as the pieces show it; `own` [d]: this peer's gradient of its batch."""
    pieces = {part: Piece("part", author, about.step, part) for part in range(about.cut.k)}
    bodies = {part: table[piece].body for part, piece in pieces.items() if piece in table}
    return work_shown(about, {part: body for part, body in bodies.items() if isinstance(body, torch.Tensor)}, own)
