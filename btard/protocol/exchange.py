"""Section 3, phase 2: every worker sends part j to its owner, who checks it against the commitment."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from btard.protocol.effects import Effect
from btard.protocol.identity import SIGNATURE_SIZE
from btard.protocol.messages import PACKET_OVERHEAD, Packet, tensor_of
from btard.protocol.record import StepRecord
from btard.protocol.wire import Malformed

if TYPE_CHECKING:
    from btard.protocol.peer import Peer


def exchange(peer: Peer, record: StepRecord, gradient: torch.Tensor | None) -> Generator[Effect, Any, None]:
    """Send my parts, keep the good ones among those that come for the parts I own, remember the suspects.

    Communication: d (k-1)/k floats out of every worker.
    """
    outgoing: dict[int, list[Packet]] = {}
    if peer.id in record.workers and gradient is not None:
        behaviour, ctx, cut = peer.behaviour_at(record), peer.context(record), record.cut
        for part, owner in enumerate(record.owners):
            sent = behaviour.part(ctx, part, cut.view(gradient, part))
            if sent is None:
                continue
            # What an honest peer sends is what it committed to: no need to hash it again.
            known = None if behaviour.byzantine else record.commits[peer.id].digests[part]
            outgoing.setdefault(owner, []).append(peer.packet(record, "part", part, sent, hashed=known))
    mine = outgoing.pop(peer.id, [])
    own = [part for part, owner in enumerate(record.owners) if owner == peer.id]
    arrived = yield from peer.send(record, "part", outgoing, limit=packet_limit(record, own))
    arrived = {**arrived, peer.id: mine}
    for part in own:
        record.received[part] = {}
        for sender in record.workers:
            packet = find_packet(arrived, sender, "part", record.step, part)
            fault = check_part(peer, record, packet, sender, part)
            if fault is None and packet is not None:
                record.received[part][sender] = packet
            elif fault is not None and sender != peer.id:
                record.suspects[fault, sender, part] = packet


def bodies(packets: Mapping[int, Packet]) -> list[torch.Tensor]:
    """The parts of `packets` (sender -> packet, checked before), each [p], in the senders' order."""
    return [packets[sender].body for sender in sorted(packets)]  # type: ignore[misc]


def packet_limit(record: StepRecord, parts: Iterable[int], copies: int = 1) -> int:
    """Bytes that somebody may send who has `copies` packets for each of `parts` to send; twice what is honest.

    So a wrong size is still read and becomes evidence, and ten times the size is not read at all.
    """
    return sum(2 * copies * (8 * record.cut.size(part) + SIGNATURE_SIZE + PACKET_OVERHEAD) for part in parts)


def find_packet(
    arrived: Mapping[int, Sequence[Packet]], sender: int, kind: str, step: int, part: int, *, author: int | None = None
) -> Packet | None:
    """The packet about `part` that came from `sender`, made by `author` (by default the sender); else None."""
    wanted = (kind, sender if author is None else author, step, part)
    for packet in arrived.get(sender, ()):
        if (packet.kind, packet.sender, packet.step, packet.part) == wanted:
            return packet
    return None


def check_part(peer: Peer, record: StepRecord, packet: Packet | None, sender: int, part: int) -> str | None:
    """The kind of claim that `packet` gives cause for, None if it is the part that `sender` committed to."""
    return packet_fault(peer, packet, record.commits[sender].digests[part], record.cut.size(part), "part")


def packet_fault(peer: Peer, packet: Packet | None, committed: bytes, size: int, kind: str) -> str | None:
    """None, "bad_<kind>" if the packet itself proves its sender wrong, or "withheld_<kind>".

    Without the sender's signature bad bytes prove nothing, they are as good as none.
    """
    if packet is None:
        return f"withheld_{kind}"
    hashed = packet.digest(peer.config.run_id)
    try:
        tensor_of(packet, size)
    except Malformed:
        sound = False
    else:
        sound = hashed == committed
    if sound:
        return None
    return f"bad_{kind}" if packet.authentic(hashed, peer.roster) else f"withheld_{kind}"
