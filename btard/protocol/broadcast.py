"""Broadcasts that nobody can split: after every phase all honest peers hold the same messages, or know who lied.

Peers sign what they heard (`certificate.py`). A peer that has all signatures continues. Where one is missing,
everything that was heard is passed on, and whatever is new goes around with the signatures of all through whose hands
it went, in the rounds of Dolev and Strong (Authenticated algorithms for Byzantine agreement, SIAM J. Comput. 1983): a
message that turns up in round r needs r relayers, so that with as many rounds as there are Byzantine peers one of them
is honest and has told everybody. Two messages of one sender for one phase are proof against it. Without liars the cost
is one comparison of 64 bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from typing import Any

from btard.protocol import loads
from btard.protocol.certificate import accepted, agreeing, certify, shown, signers, vouch
from btard.protocol.effects import QUIET, Broadcast, Compare, Effect, Exchange, Relay
from btard.protocol.hearing import Hearing, first_heard
from btard.protocol.limits import FACES, relay_limit, told_limit
from btard.protocol.memory import Later
from btard.protocol.messages import Relayed, Signed, Vouch, relay_digest
from btard.protocol.record import StepRecord
from btard.protocol.seat import Seat


def hear(
    seat: Seat, record: StepRecord, phase: str, message: Signed | None, faces: Mapping[int, Signed | None], limit: int
) -> Generator[Effect, Any, Hearing]:
    """Broadcast `message`; what everybody said in the phase.

    With enough relays (`_rounds`) the result is the same for all honest peers. A message with a bad signature proves
    nothing and counts as none.
    """
    arrived = yield Broadcast(phase, message, faces, limit, loads.of_broadcast(record, limit))
    heard = _directly(seat, record, phase, arrived, limit)
    rounds = _rounds(seat, record, phase)
    if rounds:
        record.heard[phase] = heard.messages  # for the hooks to see
        heard = yield from _agree(seat, record, phase, heard, limit, rounds)
    return heard


def _directly(seat: Seat, record: StepRecord, phase: str, arrived: Mapping[int, Any], limit: int) -> Hearing:
    """What came from the senders themselves. Peers of one process that received the same evaluate it once."""
    senders = record.speakers
    came = tuple(signed if isinstance(signed := arrived.get(sender), Signed) else None for sender in senders)
    first = seat.memory(first_heard, record.context, phase, limit, senders, seat.roster, came)
    if first.hearing is None:
        heard: dict[int, dict[bytes, Signed]] = {}
        for sender, signed in zip(senders, came, strict=True):
            hashed = genuine(seat, record, phase, signed, senders, limit)
            if hashed is not None and signed is not None and signed.sender == sender:
                heard[sender] = {hashed: signed}
        first.hearing = Hearing(heard)
    return first.hearing


def _rounds(seat: Seat, record: StepRecord, phase: str) -> int:
    """One round per Byzantine member; one more if newcomers speak, which are not among these members."""
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


def _agree(
    seat: Seat, record: StepRecord, phase: str, heard: Hearing, limit: int, rounds: int
) -> Generator[Effect, Any, Hearing]:
    """`heard` if there is a certificate of it, else all that any honest member has heard."""
    behaviour, ctx, listeners = seat.behaviour_at(record), seat.context(record), record.listeners
    view, faces = behaviour.compare(ctx, phase, heard.view)
    special = {to: vouch(seat, record, phase, other) for to, other in faces.items()}
    came = yield Compare(f"{phase}/compare", vouch(seat, record, phase, view), special)
    record.vouches = {peer: said for peer, said in came.items() if isinstance(said, Vouch)}
    agreed = agreeing(seat, record, phase, heard)
    relayed = yield from _relay(seat, record, phase, heard, limit, rounds, agreed)
    if record.here is None:  # who says nothing in the roll call signs no certificate, and may have heard something else
        listeners = (*listeners, *(p for p in record.active if p not in relayed.said))
    if listeners:
        if relayed is not heard:
            agreed = agreeing(seat, record, phase, relayed)
        behind = [p for p in listeners if p not in agreed]
        relayed = yield from _tell(seat, record, phase, relayed, behind, limit, listening=seat.id in listeners)
    return relayed


def _relay(
    seat: Seat,
    record: StepRecord,
    phase: str,
    heard: Hearing,
    limit: int,
    rounds: int,
    agreed: Collection[int],
) -> Generator[Effect, Any, Hearing]:
    """`heard` and all that other honest members have heard; `heard` itself if there is a certificate of it.

    Members relay; newcomers cannot vouch for a message, and all listeners are told in the end.
    """
    behaviour, ctx, members, senders = seat.behaviour_at(record), seat.context(record), record.members, record.speakers
    member, needed = seat.id in members, signers(record, heard)
    proven = bool(needed) and all(peer in agreed for peer in needed)
    proof = Later(lambda: Relayed(certify(record, phase, seat.id, seat.identity, needed), ())) if proven else None
    others = [p for p in members if p != seat.id] if member else []
    recipients = [] if proven else [p for p in others if p not in agreed]
    fresh: dict[bytes, Relayed] = {}
    if recipients:
        fresh = {hashed: Relayed(signed, ()) for said in heard.said.values() for hashed, signed in said.items()}
    bound, load = relay_limit(len(senders), limit), loads.of_relays(record, limit)
    all_said: dict[int, dict[bytes, Signed]] | None = None  # a copy, once anything comes
    known: set[tuple[int, bytes]] = set()
    for round in range(1, rounds + 2):
        passed_on = tuple(_countersign(seat, item, hashed) for hashed, item in fresh.items()) if recipients else ()
        outgoing: Mapping[int, Sequence[Relayed]] = dict.fromkeys(recipients, passed_on) if passed_on else {}
        outgoing = behaviour.relay(ctx, phase, round, outgoing)
        arrived = yield Relay(
            f"{phase}/relay/{round}",
            outgoing,
            bound,
            load,
            left=rounds + 1 - round,
            first=round == 1,
            quiet=behaviour.relays_news and not outgoing,
            settled=behaviour.relays_news and (proven or not member),
            proof=proof if round == 1 and member else None,
        )
        if arrived is QUIET:
            break
        fresh, recipients = {}, others
        if proven or not member:
            continue
        came = {deliverer: [item for item in arrived[deliverer] if _well_formed(item)] for deliverer in sorted(arrived)}
        certificates = [one for items in came.values() if (one := shown(phase, items)) is not None]
        taken = next((c for c in certificates if accepted(seat, record, phase, heard, c, needed, round)), None)
        if taken is not None:
            proven, fresh = True, {taken.message.digest(record.context): taken}
            continue
        items = [item for said_by_one in came.values() for item in said_by_one]
        if items and all_said is None:
            all_said = {sender: dict(said) for sender, said in heard.said.items()}
            known = {(sender, signed.payload) for sender, said in all_said.items() for signed in said.values()}
        for item in items:
            # Most of it is not new: that is seen before any signature is looked at.
            what = (item.message.sender, item.message.payload)
            late = what in known or round > rounds  # messages have one round fewer than certificates
            hashed = None if late else _accepted(seat, record, phase, item, senders, limit, round)
            if hashed is None or all_said is None:
                continue
            known.add(what)
            said = all_said.setdefault(item.message.sender, {})
            if hashed not in said and len(said) < FACES:
                said[hashed] = item.message
                fresh[hashed] = item
    return heard if proven or all_said is None else Hearing(all_said)


def _tell(
    seat: Seat, record: StepRecord, phase: str, heard: Hearing, behind: Sequence[int], limit: int, *, listening: bool
) -> Generator[Effect, Any, Hearing]:
    """Members send all they have heard to the listeners `behind`, who take what more members send than can lie.

    Nobody relays for listeners, so their own view may differ from what the honest members agree on. If it does, all
    honest members send the same; if not, they send nothing and only liars are left. Up to the roll call members that
    are away count as members, so half of them would be too many to ask for.
    """
    behaviour, ctx, members = seat.behaviour_at(record), seat.context(record), record.members
    all_heard = tuple(Relayed(said[hashed], ()) for _, said in sorted(heard.said.items()) for hashed in sorted(said))
    outgoing: Mapping[int, Sequence[Relayed]] = {} if listening else dict.fromkeys(behind, all_heard)
    outgoing = behaviour.relay(ctx, phase, 0, outgoing)
    senders = record.speakers
    arrived = yield Exchange(
        f"{phase}/tell", outgoing, told_limit(len(senders), limit), loads.of_telling(record, limit)
    )
    if not listening:
        return heard
    told: dict[bytes, tuple[int, Hearing]] = {}
    for member in members:
        view: dict[int, dict[bytes, Signed]] = {}
        for item in arrived.get(member, ()):
            hashed = genuine(seat, record, phase, getattr(item, "message", None), senders, limit)
            if hashed is not None:
                view.setdefault(item.message.sender, {})[hashed] = item.message
        if member in arrived:
            one = Hearing(view)
            count = told[one.view][0] if one.view in told else 0
            told[one.view] = count + 1, one
    return next((one for count, one in told.values() if count > record.byzantine), heard)


def _well_formed(item: Any) -> bool:
    return isinstance(item, Relayed) and isinstance(item.message, Signed)


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
