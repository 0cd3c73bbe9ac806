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
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import QUIET, Effect, Exchange, Relay
from btard.protocol.hearing import Heard, Hearing, first_heard
from btard.protocol.limits import FACES, relay_limit, told_limit
from btard.protocol.memory import Later
from btard.protocol.place import Place
from btard.protocol.record import StepRecord
from btard.protocol.signed import Relayed, Signed, Vouch, relay_digest


def directly(place: Place, record: StepRecord, heard: Heard) -> Hearing:
    """What came from the speakers themselves. Peers of one process that received the same evaluate it once."""
    senders, phase, limit = heard.speakers, heard.phase, heard.limit
    came = tuple(map(heard.came.get, senders))
    first = place.memory(first_heard, record.context, phase, limit, senders, place.roster, tuple(map(id, came)))
    if first.hearing is None:
        first.came = came
        said: dict[int, dict[bytes, Signed]] = {}
        for sender, signed in zip(senders, came, strict=True):
            hashed = genuine(place, record, phase, signed, senders, limit)
            if hashed is not None and signed is not None and signed.sender == sender:
                said[sender] = {hashed: signed}
        first.hearing = Hearing(said)
    return first.hearing


def relay_rounds(config: ProtocolConfig, record: StepRecord, phase: str) -> int:
    """How many rounds messages are relayed in: as many as there may be hands that are not of honest members in time.

    That is one for each Byzantine member. Up to the roll call an honest member that is late counts, too: what it passes
    on can reach one peer and not another. More than b_t honest members must be in time, so all others are n - b_t - 1
    at most. There is one round more if newcomers speak, which are not among the members.
    """
    rounds = config.rounds
    strangers = bool(record.newcomers and phase == "commit" and config.relays != 0)
    if record.here is None and (rounds or strangers):
        late = len(record.members) - 2 * record.byzantine - 1
        rounds = max(rounds, min(rounds, record.byzantine) + late)
    return rounds + strangers


def genuine(
    place: Place, record: StepRecord, phase: str, signed: Any, senders: Iterable[int], limit: int
) -> bytes | None:
    """The digest of a message that one of `senders` really said in this phase; None for anything else."""
    if not _due(record, phase, signed, senders, limit):
        return None
    return signed.proven(record.context, place.roster, place.memory)


def _due(record: StepRecord, phase: str, signed: Any, senders: Iterable[int], limit: int) -> bool:
    """Whether one of `senders` could have said it in this phase: no signature is looked at."""
    if not isinstance(signed, Signed) or (signed.step, signed.phase) != (record.step, phase):
        return False
    return signed.sender in senders and signed.nbytes <= limit


def resolve(place: Place, record: StepRecord, heard: Heard, vouches: Mapping[int, Any]) -> Generator[Effect, Any, None]:
    """Agree on `heard`: what was heard directly if there is a certificate of it, else all that any honest member heard.

    `vouches`: what came from each peer in the comparison. With enough relays (`relay_rounds`) the result is the same
    for all honest peers.
    """
    record.vouches = {peer: said for peer, said in vouches.items() if isinstance(said, Vouch)}
    agreed = agreeing(place, record, heard.phase, heard.direct)
    relaying, rounds = _Relaying(place, record, heard, agreed), relay_rounds(place.config, record, heard.phase)
    for round in range(1, rounds + 2):
        left = rounds + 1 - round
        arrived = yield relaying.effect(round, left)
        if arrived is QUIET:
            break
        relaying.take(arrived, round, left)
    result, proof = relaying.hearing, relaying.proof
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

    def take(self, came: Sequence[Sequence[Relayed]], round: int) -> dict[bytes, Relayed]:
        """Keep what is new of what `came` from each peer in this round; returns that, by digest.

        An honest peer passes on nothing forged. So nothing more is read of a peer after one false signature.
        """
        fresh: dict[bytes, Relayed] = {}
        if not any(came):
            return fresh
        if self._said is None:
            said = self.heard.direct.said
            self._said = {sender: dict(of_sender) for sender, of_sender in said.items()}
            self._known = {(i, signed.payload) for i, of_sender in said.items() for signed in of_sender.values()}
        for items in came:
            for item in items:
                # Most of it is not new: that is seen before any signature is looked at.
                what = (item.message.sender, item.message.payload)
                if what in self._known or not _relayed(self.record, self.heard, item, round):
                    continue
                if len(self._said.get(item.message.sender, ())) >= FACES:
                    continue
                hashed = _proven(self.place, self.record, item)
                if hashed is None:
                    break
                self._known.add(what)
                self._said.setdefault(item.message.sender, {})[hashed] = item.message
                fresh[hashed] = item
        return fresh


def _certificate(place: Place, record: StepRecord, phase: str, needed: Sequence[int]) -> Relayed:
    return Relayed(certify(record, phase, place.id, place.identity, needed), ())


class _Relaying:
    """One peer's part in the rounds in which what was `heard` is passed on, and certificates of it are shown.

    Members relay; newcomers cannot vouch for a message, and all listeners are told in the end. `agreed`: the peers that
    have signed what this one has heard.
    """

    def __init__(self, place: Place, record: StepRecord, heard: Heard, agreed: Collection[int]) -> None:
        self.place, self.record, self.heard = place, record, heard
        self.behaviour, self.ctx = place.behaviour_at(record), place.context(record)
        self.member = place.id in record.members
        self.needed = needed = signers(record, heard.direct)
        # A peer that tells others something else, or nothing, does not hold what these hold: it is shown one, too.
        plain = heard.vouched_plainly and self.behaviour.relays_news
        proven = plain and bool(needed) and frozenset(agreed).issuperset(needed)
        certificate = Later(_certificate, place, record, heard.phase, needed)
        self.own = certificate if proven else None
        self.proof: Later[Relayed] | Relayed | None = self.own
        """A certificate of what this peer has heard directly."""
        self._others = [p for p in record.members if p != place.id] if self.member else []
        self._recipients = [] if proven else [p for p in self._others if p not in agreed]
        self._gathered = _Gathered(place, record, heard)
        said = heard.direct.said.values() if self._recipients else ()
        self._fresh = {hashed: Relayed(signed, ()) for of_sender in said for hashed, signed in of_sender.items()}

    @property
    def hearing(self) -> Hearing:
        """What was heard directly, if there is a certificate of it; else all that other honest members have heard."""
        return self._gathered.hearing if self.proof is None else self.heard.direct

    @property
    def _settled(self) -> bool:
        return self.proof is not None or not self.member

    def effect(self, round: int, left: int) -> Relay:
        """Pass on what was new in the round before; `left`: how many rounds follow."""
        record, heard, news = self.record, self.heard, self.behaviour.relays_news
        fresh = self._fresh.items() if self._recipients else ()
        passed_on = tuple(_countersign(self.place, item, hashed) for hashed, item in fresh)
        outgoing: Mapping[int, Sequence[Relayed]] = dict.fromkeys(self._recipients, passed_on) if passed_on else {}
        outgoing = self.behaviour.relay(self.ctx, heard.phase, round, outgoing)
        return Relay(
            f"{heard.phase}/relay/{round}",
            outgoing,
            relay_limit(len(record.speakers), heard.limit),
            loads.of_relays(record, heard.limit),
            left=left,
            first=round == 1,
            # In the first round a peer without a certificate is shown one, if anybody has one.
            quiet=news and not outgoing and (self._settled or round > 1),
            settled=news and self._settled,
            proof=self.own if round == 1 and self.member else None,
        )

    def take(self, arrived: Mapping[int, Sequence[Any]], round: int, left: int) -> None:
        """Keep what is new of what came in `round`; with a certificate nothing else matters."""
        settled, self._fresh, self._recipients = self._settled, {}, self._others
        if settled:
            return
        record, heard = self.record, self.heard
        came = [[item for item in arrived[peer] if _well_formed(item)] for peer in sorted(arrived)]
        for items in came:
            one = shown(heard.phase, items)
            if one is not None and accepted(self.place, record, heard.phase, heard.direct, one, self.needed, round):
                self.proof, self._fresh = one, {one.message.digest(record.context): one}
                return
        if left:  # messages have one round fewer than certificates
            self._fresh = self._gathered.take(came, round)


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
    senders, calling = record.speakers, record.here is None
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
            listed = [peer for peer in members if not calling or peer in one.said]
            counts[one.view, certified] += member in listed
            # After the roll call liars alone tell anything else. They are no more than b_t, and less than half of the
            # members also after eliminations in this step. A peer that has just fallen silent tells nothing.
            least, half = record.byzantine, len(listed) // 2
            enough = max(least, half) if calling else min(least, half)
            if counts[one.view, certified] > enough:
                heard.agreed, heard.certified = one, certified
                break


def _well_formed(item: Any) -> bool:
    return isinstance(item, Relayed) and isinstance(item.message, Signed)


def _countersign(place: Place, item: Relayed, hashed: bytes) -> Relayed:
    return Relayed(item.message, (*item.chain, (place.id, place.identity.sign(relay_digest(hashed)))))


def _relayed(record: StepRecord, heard: Heard, item: Relayed, round: int) -> bool:
    """Whether it can have come through at least `round` peers besides its sender: no signature is looked at."""
    senders = record.speakers
    if len(item.chain) > len(senders):
        return False
    relayers = {relayer for relayer, _ in item.chain} & set(record.members) - {item.message.sender}
    if len(relayers) < round or len(relayers) < len(item.chain):
        return False
    return _due(record, heard.phase, item.message, senders, heard.limit)


def _proven(place: Place, record: StepRecord, item: Relayed) -> bytes | None:
    """The digest of a relayed message that its sender and all in its chain have signed; else None."""
    hashed = item.message.proven(record.context, place.roster, place.memory)
    if hashed is None:
        return None
    signed = relay_digest(hashed)
    genuinely = (place.roster.verify(who, signed, signature, place.memory) for who, signature in item.chain)
    return hashed if all(genuinely) else None
