"""Broadcasts that nobody can split: after every phase all honest peers hold the same messages, or know who lied.

Peers sign what they heard (`certificate.py`), along with what they say next. A peer that has all signatures continues.
Where one is missing, everything that was heard is passed on, and whatever is new goes around with the signatures of all
through whose hands it went, in the rounds of Dolev and Strong (Authenticated algorithms for Byzantine agreement, SIAM
J. Comput. 1983): a message that turns up in round r needs r relayers, so that with as many rounds as there are
Byzantine peers one of them is honest and has told everybody. Two messages of one sender for one phase are proof against
it. Without liars the cost is one comparison of 64 bytes, and no time where something follows that all say anyway.

What a peer says along with a comparison follows from what it has heard itself. That counts if it turns out that all
have heard the same (`Heard.certified`). Otherwise it is void, and is said again once all agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from typing import Any

from btard.protocol import loads
from btard.protocol.certificate import accepted, agreeing, certify, shown, signers
from btard.protocol.effects import QUIET, Effect, Exchange, Relay
from btard.protocol.hearing import Heard, Hearing, first_heard
from btard.protocol.limits import FACES, relay_limit, told_limit
from btard.protocol.memory import Later
from btard.protocol.messages import Relayed, Signed, Vouch, relay_digest
from btard.protocol.place import Place
from btard.protocol.record import StepRecord


def directly(place: Place, record: StepRecord, heard: Heard) -> Hearing:
    """What came from the speakers themselves. Peers of one process that received the same evaluate it once."""
    senders, phase, limit = heard.speakers, heard.phase, heard.limit
    came = tuple(signed if isinstance(signed := heard.came.get(sender), Signed) else None for sender in senders)
    first = place.memory(first_heard, record.context, phase, limit, senders, place.roster, came)
    if first.hearing is None:
        said: dict[int, dict[bytes, Signed]] = {}
        for sender, signed in zip(senders, came, strict=True):
            hashed = genuine(place, record, phase, signed, senders, limit)
            if hashed is not None and signed is not None and signed.sender == sender:
                said[sender] = {hashed: signed}
        first.hearing = Hearing(said)
    return first.hearing


def relay_rounds(place: Place, record: StepRecord, phase: str) -> int:
    """One round per Byzantine member; one more if newcomers speak, which are not among these members."""
    rounds = place.config.rounds
    return rounds + 1 if record.newcomers and phase == "commit" and place.config.relays != 0 else rounds


def genuine(
    place: Place, record: StepRecord, phase: str, signed: Any, senders: Iterable[int], limit: int
) -> bytes | None:
    """The digest of a message that one of `senders` really said in this phase; None for anything else."""
    if not isinstance(signed, Signed) or (signed.step, signed.phase) != (record.step, phase):
        return None
    if signed.sender not in senders or signed.nbytes > limit:
        return None
    return signed.proven(record.context, place.roster, place.memory)


def resolve(place: Place, record: StepRecord, heard: Heard, vouches: Mapping[int, Any]) -> Generator[Effect, Any, None]:
    """Agree on `heard`: what was heard directly if there is a certificate of it, else all that any honest member heard.

    `vouches`: what came from each peer in the comparison. With enough relays (`relay_rounds`) the result is the same
    for all honest peers.
    """
    record.vouches = {peer: said for peer, said in vouches.items() if isinstance(said, Vouch)}
    agreed = agreeing(place, record, heard.phase, heard.direct)
    result, proof = yield from _relay(place, record, heard, agreed)
    heard.agreed, heard.certified = result, proof is not None
    listeners, calling = record.listeners, record.here is None
    if calling:  # a peer that says nothing in it signs no certificate, and may have heard something else
        listeners = (*listeners, *(p for p in record.remaining if p not in result.said))
    # A peer that nobody else has heard has no certificate, and does not know that it is the one to be told.
    unsure = calling and proof is None
    if listeners or unsure:
        if result is not heard.direct:
            agreed = agreeing(place, record, heard.phase, result)
        # Without a certificate all are told, so that they know that what was said along with the comparison is void.
        told = listeners if proof is None else [p for p in listeners if p not in agreed]
        listens = unsure or place.id in listeners
        yield from _tell(place, record, heard, told, proof, tells=place.id not in listeners, listens=listens)


class _Gathered:
    """All messages of a phase that this peer knows of: those it has heard directly, and what others passed on."""

    def __init__(self, place: Place, record: StepRecord, heard: Heard) -> None:
        self.place, self.record, self.heard = place, record, heard
        self._said: dict[int, dict[bytes, Signed]] | None = None  # a copy, once anything comes
        self._known: set[tuple[int, bytes]] = set()

    @property
    def hearing(self) -> Hearing:
        return self.heard.direct if self._said is None else Hearing(self._said)

    def take(self, items: Sequence[Relayed], round: int) -> dict[bytes, Relayed]:
        """Keep what is new of the `items` that came in this round; returns that, by digest."""
        said = self.heard.direct.said
        if items and self._said is None:
            self._said = {sender: dict(of_sender) for sender, of_sender in said.items()}
            self._known = {(i, signed.payload) for i, of_sender in said.items() for signed in of_sender.values()}
        fresh: dict[bytes, Relayed] = {}
        for item in items:
            # Most of it is not new: that is seen before any signature is looked at.
            what = (item.message.sender, item.message.payload)
            hashed = None if what in self._known else _accepted(self.place, self.record, self.heard, item, round)
            if hashed is None or self._said is None:
                continue
            self._known.add(what)
            of_sender = self._said.setdefault(item.message.sender, {})
            if hashed not in of_sender and len(of_sender) < FACES:
                of_sender[hashed] = item.message
                fresh[hashed] = item
        return fresh


def _relay(
    place: Place, record: StepRecord, heard: Heard, agreed: Collection[int]
) -> Generator[Effect, Any, tuple[Hearing, Later[Relayed] | Relayed | None]]:
    """What was heard directly and a certificate of it; or all that other honest members have heard, and None.

    Members relay; newcomers cannot vouch for a message, and all listeners are told in the end.
    """
    behaviour, ctx, phase, direct = place.behaviour_at(record), place.context(record), heard.phase, heard.direct
    members, rounds = record.members, relay_rounds(place, record, heard.phase)
    member, needed = place.id in members, signers(record, direct)
    # A peer that tells others something else, or nothing, does not hold what these hold: it is shown one, too.
    proven = bool(needed) and all(peer in agreed for peer in needed) and heard.vouched_plainly and behaviour.relays_news
    own = Later(lambda: Relayed(certify(record, phase, place.id, place.identity, needed), ())) if proven else None
    proof: Later[Relayed] | Relayed | None = own
    others = [p for p in members if p != place.id] if member else []
    recipients = [] if proven else [p for p in others if p not in agreed]
    gathered = _Gathered(place, record, heard)
    fresh: dict[bytes, Relayed] = {}
    if recipients:
        fresh = {hashed: Relayed(signed, ()) for said in direct.said.values() for hashed, signed in said.items()}
    bound, load = relay_limit(len(record.speakers), heard.limit), loads.of_relays(record, heard.limit)
    for round in range(1, rounds + 2):
        passed_on = tuple(_countersign(place, item, hashed) for hashed, item in fresh.items()) if recipients else ()
        outgoing: Mapping[int, Sequence[Relayed]] = dict.fromkeys(recipients, passed_on) if passed_on else {}
        outgoing = behaviour.relay(ctx, phase, round, outgoing)
        settled = proof is not None or not member
        arrived = yield Relay(
            f"{phase}/relay/{round}",
            outgoing,
            bound,
            load,
            left=rounds + 1 - round,
            first=round == 1,
            # In the first round a peer without a certificate is shown one, if anybody has one.
            quiet=behaviour.relays_news and not outgoing and (settled or round > 1),
            settled=behaviour.relays_news and settled,
            proof=own if round == 1 and member else None,
        )
        if arrived is QUIET:
            break
        fresh, recipients = {}, others
        if settled:
            continue
        came = [[item for item in arrived[peer] if _well_formed(item)] for peer in sorted(arrived)]
        certificates = (one for items in came if (one := shown(phase, items)) is not None)
        proof = next((one for one in certificates if accepted(place, record, phase, direct, one, needed, round)), None)
        if proof is not None:
            fresh = {proof.message.digest(record.context): proof}
        elif round <= rounds:  # messages have one round fewer than certificates
            fresh = gathered.take([item for items in came for item in items], round)
    return (gathered.hearing if proof is None else direct), proof


def _tell(
    place: Place,
    record: StepRecord,
    heard: Heard,
    listeners: Collection[int],
    proof: Later[Relayed] | Relayed | None,
    *,
    tells: bool,
    listens: bool,
) -> Generator[Effect, Any, None]:
    """Members send the `listeners` all they have heard, and these take what more members send than can lie.

    Nobody relays for listeners, so their own view may differ from what the honest members agree on. If it does, all
    honest members send the same; if not, they send nothing and only liars are left. In the roll call an honest peer
    that nobody else has heard sends something else. So there a view also takes more than half of the members that it
    lists, and no word of others counts.

    Members that have a certificate, the `proof`, send that, too: so a listener knows whether there is one.
    """
    behaviour, ctx, members, phase = place.behaviour_at(record), place.context(record), record.members, heard.phase
    hearing = heard.direct if heard.agreed is None else heard.agreed
    told = [Relayed(said[hashed], ()) for _, said in sorted(hearing.said.items()) for hashed in sorted(said)]
    if proof is not None and listeners and tells:
        told.append(proof.look() if isinstance(proof, Later) else proof)
    outgoing: Mapping[int, Sequence[Relayed]] = dict.fromkeys(listeners, tuple(told)) if tells else {}
    outgoing = behaviour.relay(ctx, phase, 0, outgoing)
    senders = record.speakers
    arrived = yield Exchange(
        f"{phase}/tell", outgoing, told_limit(len(senders), heard.limit), loads.of_telling(record, heard.limit)
    )
    if not listens:
        return
    heard.certified |= place.id not in members  # a newcomer that is told nothing has heard what they have
    counts: Counter[tuple[bytes, bool]] = Counter()
    for member in members:
        view: dict[int, dict[bytes, Signed]] = {}
        items = [item for item in arrived.get(member, ()) if _well_formed(item)]
        for item in items:
            hashed = genuine(place, record, phase, item.message, senders, heard.limit)
            if hashed is not None:
                view.setdefault(item.message.sender, {})[hashed] = item.message
        if member in arrived:
            one, certified = Hearing(view), shown(phase, items) is not None
            listed = [peer for peer in members if record.here is not None or peer in one.said]
            counts[one.view, certified] += member in listed
            enough = record.byzantine if record.here is not None else max(record.byzantine, len(listed) // 2)
            if counts[one.view, certified] > enough:
                heard.agreed, heard.certified = one, certified
                break


def _well_formed(item: Any) -> bool:
    return isinstance(item, Relayed) and isinstance(item.message, Signed)


def _countersign(place: Place, item: Relayed, hashed: bytes) -> Relayed:
    return Relayed(item.message, (*item.chain, (place.id, place.identity.sign(relay_digest(hashed)))))


def _accepted(place: Place, record: StepRecord, heard: Heard, item: Relayed, round: int) -> bytes | None:
    """The digest of a relayed message that has come through at least `round` peers besides its sender; else None."""
    senders = record.speakers
    if len(item.chain) > len(senders):
        return None
    relayers = {relayer for relayer, _ in item.chain} & set(record.members) - {item.message.sender}
    if len(relayers) < round or len(relayers) < len(item.chain):
        return None
    hashed = genuine(place, record, heard.phase, item.message, senders, heard.limit)
    if hashed is None:
        return None
    signed = relay_digest(hashed)
    genuinely = (place.roster.verify(who, signed, signature, place.memory) for who, signature in item.chain)
    return hashed if all(genuinely) else None
