"""Packets that arrive: which one is meant, whether it is what was committed to, and what a process knows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from btard.protocol.half import values_of
from btard.protocol.memory import remembered
from btard.protocol.record import StepRecord
from btard.protocol.seat import Seat
from btard.protocol.signed import Packet, tensor_of
from btard.protocol.wire import Malformed


def find_packet(
    arrived: Mapping[int, Sequence[Packet]], sender: int, kind: str, step: int, part: int, *, author: int | None = None
) -> Packet | None:
    """The packet about `part` that came from `sender`, made by `author` (by default the sender); else None."""
    wanted = (kind, sender if author is None else author, step, part)
    for packet in arrived.get(sender, ()):
        if (packet.kind, packet.sender, packet.step, packet.part) == wanted:
            return packet
    return None


def packet_fault(
    seat: Seat, about: StepRecord, packet: Packet | None, committed: bytes, part: int, kind: str
) -> str | None:
    """None, "bad_<kind>" if a packet of step `about` itself proves its sender wrong, or "withheld_<kind>".

    Without the sender's signature, in this life of the step, bad bytes prove nothing, they are as good as none.
    """
    if packet is None:
        return f"withheld_{kind}"
    hashed, cut = seat.commitments.of_packet(packet), about.cut
    try:
        sound_body = lambda body: seat.commitments.sound(hashed, body)  # noqa: E731
        tensor_of(packet, cut.size(part), sound_body, halved=kind in cut.halved)
    except Malformed:
        sound = False
    else:
        sound = hashed == committed
    if sound:
        return None
    return f"bad_{kind}" if packet.authentic(hashed, about.context, seat.roster, seat.memory) else f"withheld_{kind}"


def rows(packets: Mapping[int, Packet]) -> list[torch.Tensor]:
    """The values in `packets` (sender -> packet, checked before), each [p], in the senders' order."""
    return [values_of(packets[sender].body) for sender in sorted(packets)]  # type: ignore[arg-type]


@remembered(2)
def sent_here(context: bytes) -> dict[int, torch.Tensor]:
    """Worker of this process -> the gradient [d] whose parts it sends in the step of this context."""
    return {}
