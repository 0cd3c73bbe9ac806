"""Certificates that all honest members have heard the same in a phase of broadcasts: nothing has to be relayed then.

After a phase every peer signs what it heard, its view. A certificate of a view is a signature on it by each member. If
there is one, it is the view of all honest members. A peer that has one keeps what it has heard and continues. It shows
its certificate to those that have none. Up to the roll call nobody knows who is there: there it takes the signatures of
all that the view lists, which must be more than half. Every honest peer hears every honest one that says something
there, and one that says nothing is out of the step.

A liar can keep its signature from some peers or from all. So a certificate is passed on like a message: first shown in
round r, it must come with the signatures of r members, the one that made it among them. That takes one round more than
messages have (`relay_rounds`): what an honest peer accepts in round r reaches everybody in round r + 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from btard.protocol.hashing import digest
from btard.protocol.hearing import Hearing
from btard.protocol.identity import Identity, Signing
from btard.protocol.memory import remembered
from btard.protocol.messages import Certificate
from btard.protocol.place import Place
from btard.protocol.record import StepRecord
from btard.protocol.signed import Relayed, Signed, Vouch, relay_digest
from btard.protocol.wire import Malformed


@remembered(64)
def _statement(context: bytes, phase: str, view: bytes) -> bytes:
    """The 32 bytes that a peer signs if it heard `view` in `phase`."""
    return digest("view", context, phase, view)


def vouch(place: Place, record: StepRecord, phase: str, view: bytes | None) -> Vouch | None:
    """This peer's signature on `view`, made when somebody looks at it; None for None."""
    if view is None:
        return None
    statement = place.memory(_statement, record.context, phase, view)
    return Vouch(statement, Signing(place.identity, statement, place.memory))


def agreeing(place: Place, record: StepRecord, phase: str, heard: Hearing) -> frozenset[int]:
    """The peers that have signed the view of `heard`."""
    statement = place.memory(_statement, record.context, phase, heard.view)
    return frozenset(peer for peer, said in record.vouches.items() if said.on(statement, peer, place.roster))


def signers(record: StepRecord, heard: Hearing) -> tuple[int, ...]:
    """The members that have to sign the view of `heard`, ascending; () if they are too few. None has two faces."""
    count = (1,) if record.here is None else (0, 1)
    return heard.once(_with_faces, record.members, count)


def _with_faces(heard: Hearing, members: tuple[int, ...], count: tuple[int, ...]) -> tuple[int, ...]:
    """The `members` that have said so many things, if they are more than half of them."""
    needed = tuple(peer for peer in members if len(heard.said.get(peer, ())) in count)
    return needed if 2 * len(needed) > len(members) else ()


def certify(record: StepRecord, phase: str, me: int, identity: Identity, needed: Sequence[int]) -> Signed:
    """The certificate of `phase` that peer `me` has: the signatures of all that are `needed`, and its own on them."""
    payload = Certificate(tuple(needed), tuple(record.vouches[peer].signature for peer in needed))
    return Signed.create(identity, record.context, me, record.step, _named(phase), payload)


def shown(phase: str, items: Iterable[Relayed]) -> Relayed | None:
    """The first certificate among the `items` of one peer: an honest one shows no more, and each costs signatures."""
    return next((item for item in items if item.message.phase == _named(phase)), None)


def accepted(
    place: Place, record: StepRecord, phase: str, heard: Hearing, item: Relayed, needed: Sequence[int], round: int
) -> bool:
    """Whether `item`, which came in `round`, is a certificate of the view of `heard`, with enough signatures on it.

    `needed`: the members that have to have signed the view; () if there can be no certificate of it.
    """
    said, limit = item.message, place.limits(record).message(Certificate)
    if not needed or (said.step, said.phase) != (record.step, _named(phase)) or said.nbytes > limit:
        return False
    hands = [said.sender, *(relayer for relayer, _ in item.chain)]
    if not round <= len(hands) == len(set(hands)) or not set(hands) <= set(record.members):
        return False
    try:
        held = said.open(Certificate, limit, place.memory)
    except Malformed:
        return False
    hashed = said.proven(record.context, place.roster, place.memory)
    if hashed is None or held.signers != tuple(needed) or len(held.signatures) != len(needed):
        return False
    statement, passed = place.memory(_statement, record.context, phase, heard.view), relay_digest(hashed)
    signed = [(peer, passed, signature) for peer, signature in item.chain]
    signed += [(peer, statement, signature) for peer, signature in zip(needed, held.signatures, strict=True)]
    return all(place.roster.verify(*one, place.memory) for one in signed)


def _named(phase: str) -> str:
    """The phase of the certificates of `phase`."""
    return f"{phase}/certificate"
