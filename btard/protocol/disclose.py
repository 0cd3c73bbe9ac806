"""In mode `tolerant` a validator sees what its target committed to in the step before, and so do judges.

The target sends its parts; their hashes are its own commitments, so it does not matter from whom they come. Who is not
shown all of them claims "undisclosed". Then the target and the owners of its parts show them to everybody: a part that
nobody shows convicts the target, and otherwise the judges look for themselves. A target that withholds from its
validator alone thus gains nothing, and the validator, who cannot prove what it was not sent, loses nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch

from btard.protocol.effects import Effect
from btard.protocol.limits import packet_limit
from btard.protocol.messages import Packet
from btard.protocol.packets import committed_body, find_packet, gradient_packets
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
        if target == seat.id and last.own is not None and validator in record.remaining:
            outgoing[validator] = gradient_packets(last, seat.id, last.own)
    limit = packet_limit(last, range(last.cut.k))
    arrived = yield from seat.send(record, "disclose", outgoing, limit=limit)
    watched = record.assignments.get(seat.id)
    if watched is not None and recomputed is not None:
        keep_disclosed(seat, record, watched, {watched: arrived.get(watched, ())}, recomputed)


def keep_disclosed(
    seat: Seat,
    record: StepRecord,
    author: int,
    evidence: Mapping[int, Sequence[Packet]],
    recomputed: torch.Tensor,
) -> None:
    """Put `author`'s gradient of the step before into `record.disclosed` if `evidence` has all of its parts."""
    about = seat.last
    if about is None or author not in about.commits or author in record.disclosed:
        return
    committed = about.commits[author].digests
    mine = seat.commitments.parts(author, about.step, recomputed, about.cut)
    if mine == committed:
        record.disclosed[author] = recomputed
        return
    whole = torch.empty_like(recomputed)
    for part in range(about.cut.k):
        body = about.cut.view(recomputed, part) if mine[part] == committed[part] else None
        for discloser in evidence if body is None else ():
            packet = find_packet(evidence, discloser, "part", about.step, part, author=author)
            body = committed_body(seat, about, packet, author, part)
            if body is not None:
                break
        if body is None:
            return
        about.cut.view(whole, part).copy_(body)
    record.disclosed[author] = whole
