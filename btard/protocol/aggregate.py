"""Phase aggregate, ButterflyClip (the paper's Algorithm 2): the owner of a part clips, announces and sends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import torch

from btard.aggregation import centered_clip, centered_clips, stack_rows
from btard.protocol import loads
from btard.protocol.behaviour import taken
from btard.protocol.effects import Broadcast, Exchange
from btard.protocol.half import values_of
from btard.protocol.limits import packet_limit
from btard.protocol.memory import remembered
from btard.protocol.messages import Announce, AnnouncedPart
from btard.protocol.packets import find_packet, packet_fault, rows, sent_here
from btard.protocol.record import StepRecord
from btard.protocol.seat import Seat
from btard.protocol.signed import Packet, is_finite
from btard.protocol.split import Split
from btard.protocol.wire import Malformed


def clip_parts(x: torch.Tensor, tau: float) -> torch.Tensor:
    """What all owners compute from the workers' gradients `x` [k, d]: CenteredClip of each of k parts, as [d]."""
    parts = [part.contiguous() for part in Split(x.shape[1], min(x.shape)).views(x)]
    return torch.cat([clipped.value for clipped in centered_clips(parts, tau)])


TOGETHER = 2**20
"""Numbers in the gradients of all workers up to which the parts of a process are clipped at once."""


@dataclass
class _Clipped:
    """The parts of all workers of a process, [k, p] each, and their CenteredClips."""

    parts: Sequence[torch.Tensor] = ()
    values: Sequence[torch.Tensor] = ()
    done: bool = False
    lock: Lock = field(default_factory=Lock)


@remembered(2)
def _clipped(context: bytes) -> _Clipped:
    return _Clipped()


def _clip(seat: Seat, record: StepRecord, part: int, x: torch.Tensor) -> torch.Tensor:
    """CenteredClip of the rows `x` that came for `part`.

    If gradients are small, the first owner of a process clips all parts at once, of what the workers have sent. An
    owner uses the result only if the same bytes have come to it; else it computes its own.
    """
    clipped = seat.memory(_clipped, record.context)
    with clipped.lock:
        if not clipped.done:
            sent = seat.memory(sent_here, record.context)
            known = [sent[worker] for worker in record.workers if worker in sent]
            if len(known) == len(record.workers) and len(known) * seat.d <= TOGETHER:
                gradients = stack_rows(known).clone()
                parts = record.cut.views(gradients) if is_finite(gradients) else ()
                clipped.values = [one.value for one in centered_clips(parts, record.tau, tol=seat.config.tol)]
                clipped.parts = parts
            clipped.done = True
    if clipped.parts and torch.equal(clipped.parts[part].view(torch.int32), x.view(torch.int32)):
        return clipped.values[part]
    return centered_clip(x, record.tau, tol=seat.config.tol).value


@dataclass(frozen=True)
class Offer:
    """What an owner has to say about its parts: the announcement, and the aggregates for everybody else."""

    values: Mapping[int, torch.Tensor]
    """Part -> a[j] [p], in the gradient's dtype."""
    announcement: Broadcast
    packets: Exchange


def offer(seat: Seat, record: StepRecord) -> Offer:
    """H(a[j]) and its senders for the parts this peer owns, and a[j].

    Both are said at once, along with the commitment to the coin: an owner's aggregate depends on nothing that others
    announce, and nobody can choose one by the coin. The aggregates are signed, so what differs from the announcement
    is evidence. Communication: d/k floats to every active peer.
    """
    behaviour, ctx = seat.behaviour_at(record), seat.context(record)
    values: dict[int, torch.Tensor] = {}
    announced: list[AnnouncedPart] = []
    for part, packets in record.received.items():
        if not packets:
            continue
        x = stack_rows(rows(packets))
        value = _clip(seat, record, part, x)
        chosen = taken(value, behaviour.aggregate(ctx, part, value, x))
        body = record.cut.body("aggregate", chosen)
        values[part] = chosen if body is chosen else values_of(body)
        hashed = seat.commitments.digest("aggregate", seat.id, record.step, part, body)
        announced.append(AnnouncedPart(part, hashed, tuple(sorted(packets))))
    payload = Announce(tuple(announced)) if seat.id in record.workers else None
    announcement = seat.saying(record, "announce", Announce, payload)
    said = _announced(seat, announcement)
    sent: dict[int, tuple[Packet, ...]] = {}
    for part, value in values.items():
        usual = (seat.packet(record, "aggregate", part, value, hashed=said.get(part)),)  # signed, measured once for all
        for recipient in record.remaining:
            body = None if recipient == seat.id else taken(value, behaviour.aggregate_for(ctx, recipient, part, value))
            if body is not None:
                own = usual if body is value else (seat.packet(record, "aggregate", part, body, hashed=None),)
                sent[recipient] = sent.get(recipient, ()) + own
    limit = packet_limit(record, [0], "aggregate")  # an owner has one part, and no part is larger than the first
    load = loads.of_aggregates(record, limit)
    return Offer(values, announcement, seat.sending(record, "aggregate", sent, limit=limit, load=load))


def _announced(seat: Seat, announcement: Broadcast) -> dict[int, bytes]:
    """Part -> the digest that this peer announces; a Byzantine one may announce anything."""
    if announcement.message is None:
        return {}
    try:
        said = announcement.message.open(Announce, announcement.limit, seat.memory)
    except Malformed:
        return {}
    return {entry.part: entry.digest for entry in said.parts}


@dataclass(frozen=True)
class Received:
    """The aggregates that this peer has, by the announcements that it has heard, or those on which all agree."""

    announces: Mapping[int, Announce]
    """Owner -> what it has announced."""
    malformed: tuple[int, ...]
    """Owners that have announced other parts than theirs, or impossible senders."""
    announced: dict[int, AnnouncedPart]
    """Part -> its entry in a well-formed announcement."""
    aggregates: dict[int, torch.Tensor]
    """Part -> a[j] [p], as announced."""
    suspects: Mapping[tuple[str, int, int], Packet | None]
    """(kind of claim, owner, part) -> the packet that justifies it, None if none came."""

    @property
    def missing(self) -> tuple[int, ...]:
        """The parts whose aggregate this peer lacks."""
        return tuple(part for part in self.announced if part not in self.aggregates)


def receive(
    seat: Seat,
    record: StepRecord,
    offer: Offer,
    arrived: Mapping[int, Sequence[Packet]],
    announces: Mapping[int, Announce],
) -> Received:
    """Check the aggregates that `arrived` by what their owners announced."""
    owned: dict[int, list[int]] = {}
    for part, owner in enumerate(record.owners):
        owned.setdefault(owner, []).append(part)
    fit = {i for i, said in announces.items() if _fits(record, said, set(owned.get(i, ())))}
    listed = {entry.part: entry for i, said in announces.items() if i in fit for entry in said.parts}
    announced = {part: listed[part] for part in range(record.cut.k) if part in listed}
    aggregates: dict[int, torch.Tensor] = {}
    suspects: dict[tuple[str, int, int], Packet | None] = {}
    for part in range(record.cut.k):
        owner = record.owner(part)
        if owner == seat.id and part in offer.values:
            aggregates[part] = offer.values[part]
        elif part in announced and owner != seat.id:
            packet = find_packet(arrived, owner, "aggregate", record.step, part)
            fault = packet_fault(seat, record, packet, announced[part].digest, part, "aggregate")
            if fault is not None:
                suspects[fault, owner, part] = packet
            elif packet is not None and isinstance(packet.body, torch.Tensor):
                aggregates[part] = values_of(packet.body)
    malformed = tuple(i for i in announces if i not in fit)
    return Received(announces, malformed, announced, aggregates, suspects)


def take(record: StepRecord, came: Received) -> None:
    """Keep what has come, as far as this peer knows by now what was announced."""
    record.announced, record.aggregates = came.announced, came.aggregates


def accept(seat: Seat, record: StepRecord, came: Received) -> None:
    """Keep what has come once all agree on the announcements, with what is suspect about it."""
    take(record, came)
    for owner in came.malformed:
        seat.expel(record, owner, "malformed_announce")
    record.suspects |= came.suspects


def _fits(record: StepRecord, message: Announce, owned: set[int]) -> bool:
    """Whether an announcement covers exactly the parts `owned` with some of the workers as senders."""
    if {entry.part for entry in message.parts} != owned or len(message.parts) != len(owned):
        return False
    workers = set(record.workers)
    return all(
        entry.senders == record.workers
        or (entry.senders and tuple(sorted(workers.intersection(entry.senders))) == entry.senders)
        for entry in message.parts
    )
