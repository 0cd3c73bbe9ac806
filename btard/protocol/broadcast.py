"""Broadcasts that nobody can split: after every phase all honest peers hold the same messages, or know who lied.

Peers compare digests of what they heard. Where they differ, everything that was heard is passed on, and whatever is
new goes around with the signatures of all through whose hands it went, in the rounds of Dolev and Strong
(Authenticated algorithms for Byzantine agreement, SIAM J. Comput. 1983): a message that turns up in round r needs r
relayers, so that with as many rounds as there are Byzantine peers one of them is honest and has told everybody. Two
messages of one sender for one phase are proof against it. Without liars the cost is one comparison of 32 bytes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

from btard.protocol import loads
from btard.protocol.effects import Broadcast, Compare, Effect, Exchange
from btard.protocol.hashing import digest
from btard.protocol.limits import FACES, relay_limit, told_limit
from btard.protocol.messages import Relayed, Signed, relay_digest
from btard.protocol.record import StepRecord
from btard.protocol.seat import Heard, Seat


def hear(
    seat: Seat, record: StepRecord, phase: str, message: Signed | None, faces: Mapping[int, Signed | None], limit: int
) -> Generator[Effect, Any, Heard]:
    """Broadcast `message`; all genuine messages of the phase, one per sender unless it has two faces.

    With enough relays (`_rounds`) the result is the same for all honest peers. A message with a bad signature proves
    nothing and counts as none.
    """
    arrived = yield Broadcast(phase, message, faces, limit, loads.of_broadcast(record, limit))
    senders = record.speakers
    heard: Heard = {}
    for sender in senders:
        signed = arrived.get(sender)
        hashed = genuine(seat, record, phase, signed, senders, limit)
        if hashed is not None and isinstance(signed, Signed) and signed.sender == sender:
            heard[sender] = {hashed: signed}
    rounds = _rounds(seat, record, phase)
    if rounds:
        record.heard[phase] = {sender: tuple(said.values()) for sender, said in heard.items()}  # for the hooks to see
        yield from _agree(seat, record, phase, heard, limit, rounds)
    return heard


def _rounds(seat: Seat, record: StepRecord, phase: str) -> int:
    """One round per Byzantine member; one more where newcomers speak, who are none of these members."""
    rounds = seat.config.rounds
    return rounds + 1 if record.newcomers and phase == "commit" and seat.config.relays != 0 else rounds


def genuine(
    seat: Seat, record: StepRecord, phase: str, signed: Any, senders: Iterable[int], limit: int
) -> bytes | None:
    """The digest of a message that one of `senders` really said in this phase; None for anything else."""
    if not isinstance(signed, Signed) or (signed.step, signed.phase) != (record.step, phase):
        return None
    if signed.sender not in senders or signed.nbytes > limit:
        return None
    return signed.proven(record.context, seat.roster, seat.memory)


def _view(heard: Heard) -> bytes:
    """What a peer has heard, in one digest: everybody's message or, of who said two things, who that is.

    Not which two: honest peers may have kept different ones of its many faces, and come to the same step.
    """
    fields: list[int | bytes] = []
    for sender, said in sorted(heard.items()):
        fields += said if len(said) == 1 else [sender]
    return digest("heard", *fields)


def _agree(
    seat: Seat, record: StepRecord, phase: str, heard: Heard, limit: int, rounds: int
) -> Generator[Effect, Any, None]:
    """Add to `heard` whatever another honest member has heard. Members relay; newcomers cannot vouch for a message."""
    behaviour, ctx = seat.behaviour_at(record), seat.context(record)
    senders, members = record.speakers, record.members
    others = [p for p in members if p != seat.id] if seat.id in members else []
    view = _view(heard)
    views = yield Compare(f"{phase}/compare", behaviour.compare(ctx, phase, view))
    fresh: dict[bytes, Relayed] = {
        hashed: Relayed(signed, ()) for said in heard.values() for hashed, signed in said.items()
    }
    recipients = [p for p in others if views.get(p) != view]
    bound, load = relay_limit(len(senders), limit), loads.of_relays(record, limit)
    known = {(sender, signed.payload) for sender, said in heard.items() for signed in said.values()}
    for round in range(1, rounds + 1):
        passed_on = tuple(_countersign(seat, item, hashed) for hashed, item in fresh.items()) if recipients else ()
        outgoing: Mapping[int, Sequence[Relayed]] = dict.fromkeys(recipients, passed_on) if passed_on else {}
        outgoing = behaviour.relay(ctx, phase, round, outgoing)
        arrived = yield Exchange(f"{phase}/relay/{round}", outgoing, bound, load)
        fresh = {}
        for deliverer in sorted(arrived):
            for item in arrived[deliverer] if seat.id in members else ():
                # Most of it is not new: that is seen before any signature is looked at.
                if not isinstance(item, Relayed) or not isinstance(item.message, Signed):
                    continue
                what = (item.message.sender, item.message.payload)
                hashed = None if what in known else _accepted(seat, record, phase, item, senders, limit, round)
                if hashed is None:
                    continue
                known.add(what)
                said = heard.setdefault(item.message.sender, {})
                if hashed not in said and len(said) < FACES:
                    said[hashed] = item.message
                    fresh[hashed] = item
        recipients = others
    if record.listeners:
        behind = [p for p in record.listeners if views.get(p) != _view(heard)]
        yield from _tell(seat, record, phase, heard, behind, limit)


def _tell(
    seat: Seat, record: StepRecord, phase: str, heard: Heard, behind: Sequence[int], limit: int
) -> Generator[Effect, Any, None]:
    """Members send all they have heard to the listeners `behind`, who take what more than half of the members send.

    Nobody relays for listeners, so their own view may differ from what the honest members agree on. If it does, all
    honest members send the same; if not, they send nothing and less than half are left to lie.
    """
    behaviour, ctx, members = seat.behaviour_at(record), seat.context(record), record.members
    all_heard = tuple(Relayed(said[hashed], ()) for _, said in sorted(heard.items()) for hashed in sorted(said))
    outgoing: Mapping[int, Sequence[Relayed]] = dict.fromkeys(behind, all_heard) if seat.id in members else {}
    outgoing = behaviour.relay(ctx, phase, 0, outgoing)
    senders = record.speakers
    arrived = yield Exchange(
        f"{phase}/tell", outgoing, told_limit(len(senders), limit), loads.of_telling(record, limit)
    )
    if seat.id in members:
        return
    told: dict[bytes, tuple[int, Heard]] = {}
    for member in members:
        view: Heard = {}
        for item in arrived.get(member, ()):
            hashed = genuine(seat, record, phase, getattr(item, "message", None), senders, limit)
            if hashed is not None:
                view.setdefault(item.message.sender, {})[hashed] = item.message
        if member in arrived:
            count = told[_view(view)][0] if _view(view) in told else 0
            told[_view(view)] = count + 1, view
    for count, view in told.values():
        if 2 * count > len(members):
            heard.clear()
            heard.update(view)


def _countersign(seat: Seat, item: Relayed, hashed: bytes) -> Relayed:
    return Relayed(item.message, (*item.chain, (seat.id, seat.identity.sign(relay_digest(hashed)))))


def _accepted(
    seat: Seat, record: StepRecord, phase: str, item: Relayed, senders: Sequence[int], limit: int, round: int
) -> bytes | None:
    """The digest of a relayed message that has come through at least `round` peers besides its sender; else None."""
    if len(item.chain) > len(senders):
        return None
    relayers = {relayer for relayer, _ in item.chain} & set(record.members) - {item.message.sender}
    if len(relayers) < round or len(relayers) < len(item.chain):
        return None
    hashed = genuine(seat, record, phase, item.message, senders, limit)
    if hashed is None:
        return None
    signed = relay_digest(hashed)
    genuinely = (seat.roster.verify(who, signed, signature, seat.memory) for who, signature in item.chain)
    return hashed if all(genuinely) else None
