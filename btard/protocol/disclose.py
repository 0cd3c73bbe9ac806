"""Section 5: in mode `tolerant` a validator sees what its target committed to in the step before, and so do judges.

The target sends its parts; their hashes are its own commitments, so it does not matter from whom they come. Who is not
shown all of them claims "undisclosed". Then the target and the owners of its parts show them to everybody: a part that
nobody shows convicts the target, and otherwise the judges look for themselves. A target that withholds from its
validator alone thus gains nothing, and the validator, who cannot prove what it was not sent, loses nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from btard.protocol.commit import part_digests
from btard.protocol.effects import Effect
from btard.protocol.exchange import find_packet, packet_fault, packet_limit
from btard.protocol.messages import Packet
from btard.protocol.record import StepRecord

if TYPE_CHECKING:
    from btard.protocol.peer import Peer


def disclose(peer: Peer, record: StepRecord, recomputed: torch.Tensor | None) -> Generator[Effect, Any, None]:
    """Send my parts of the step before to my validator; as a validator keep in `record.disclosed` what I am shown.

    `recomputed` [d]: the validator's own gradient of its target's batch. Whatever of it has the committed hash needs
    not be shown. Communication: d floats from every target.
    """
    last = peer.last
    if peer.config.validation == "exact" or last is None or not record.assignments:
        return
    outgoing: dict[int, Sequence[Packet]] = {}
    for validator, target in record.assignments.items():
        if target == peer.id and last.own is not None and validator in record.remaining:
            outgoing[validator] = gradient_packets(last, peer.id, last.own)
    limit = packet_limit(last, range(last.cut.k))
    arrived = yield from peer.send(record, "disclose", outgoing, limit=limit)
    watched = record.assignments.get(peer.id)
    if watched is not None and recomputed is not None:
        keep_disclosed(peer, record, watched, {watched: arrived.get(watched, ())}, recomputed)


def gradient_packets(about: StepRecord, author: int, gradient: torch.Tensor) -> list[Packet]:
    """All parts of the committed `gradient` [d]. Unsigned: what proves them is that they have the committed hashes."""
    return [
        Packet("part", author, about.step, part, about.cut.view(gradient, part), b"") for part in range(about.cut.k)
    ]


def keep_disclosed(
    peer: Peer,
    record: StepRecord,
    author: int,
    evidence: Mapping[int, Sequence[Packet]],
    recomputed: torch.Tensor,
) -> None:
    """Put `author`'s gradient of the step before into `record.disclosed` if `evidence` has all of its parts."""
    about = peer.last
    if about is None or author not in about.commits or author in record.disclosed:
        return
    committed = about.commits[author].digests
    mine = part_digests(peer.config.run_id, author, about.step, recomputed, about.cut)
    if mine == committed:
        record.disclosed[author] = recomputed
        return
    whole = torch.empty_like(recomputed)
    for part in range(about.cut.k):
        body = about.cut.view(recomputed, part) if mine[part] == committed[part] else None
        for discloser in evidence if body is None else ():
            packet = find_packet(evidence, discloser, "part", about.step, part, author=author)
            body = committed_body(peer, about, packet, author, part)
            if body is not None:
                break
        if body is None:
            return
        about.cut.view(whole, part).copy_(body)
    record.disclosed[author] = whole


def committed_body(peer: Peer, about: StepRecord, packet: Packet | None, sender: int, part: int) -> torch.Tensor | None:
    """The disclosed part [p], if it is the one that `sender` committed to."""
    if packet is None or not isinstance(packet.body, torch.Tensor):
        return None
    size, committed = about.cut.size(part), about.commits[sender].digests[part]
    return packet.body if packet_fault(peer, packet, committed, size, "part") is None else None
