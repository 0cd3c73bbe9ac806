"""Attacks on certificates: shown to one honest peer, while the others hear a second message of a liar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from btard.attacks.speech import named
from btard.protocol.behaviour import Context
from btard.protocol.certificate import certify
from btard.protocol.identity import Identity
from btard.protocol.messages import Announce, Commit, Join, JoinRequest
from btard.protocol.signed import Relayed, Signed, Vouch, relay_digest
from tests.hunt.by_hand.broadcasts import identity, signed, vouched
from tests.hunt.by_hand.cohort import cohort, damage
from tests.protocol.promises import Attacker, Away

LIARS = (1, 3)
AWAY = 2
"""The step in which peer 4 is away."""


class ToValidators(Attacker):
    """Announces something else to the validators, which announce nothing themselves."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase != "announce" or message is None or not payload.parts:
            return message, {}
        other = Announce(tuple(replace(part, digest=bytes(32)) for part in payload.parts))
        return message, {validator: sign(other) for validator in ctx.assignments}


def certificate_of_speakers() -> str:
    return damage(cohort({1: ToValidators()}, validators=1), 4)


class ToTheAway(Attacker):
    """Says nothing in the roll call to peer 4, which is away in step 2, or something else if `other`."""

    def __init__(self, other: bool) -> None:
        self.other = other

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if ctx.step != AWAY or phase != "commit" or message is None or not payload.digests:
            return message, {}
        return message, {
            4: sign(Commit(tuple(bytes(32) for _ in payload.digests), payload.after)) if self.other else None
        }


class NamesOne(Attacker):
    """Names a key of its own to peer 4, which is away in step 2, and to nobody else."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if ctx.step != AWAY or phase != "join" or message is None:
            return message, {}
        return message, {4: sign(Join((JoinRequest.create(Identity.from_seed("sybil"), ctx.run_id),)))}


class Stranger(Attacker):
    """A newcomer that says nothing to peer 4 while that is away."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return message, {4: None} if phase == "commit" and ctx.step == AWAY else {}


def certificate_without_the_away() -> str:
    away = Away(lambda ctx: ctx.step == AWAY)
    found = [damage(cohort({1: ToTheAway(other), 4: away}, validators=1), 6) for other in (False, True)]
    found.append(damage(cohort({1: NamesOne(), 4: away}, validators=1, probation=3), 4))
    let_in = cohort({4: away}, byzantine=1, validators=1, probation=3)
    let_in.join(Identity.from_seed("stranger"), Stranger())
    found.append(damage(let_in, 5))
    return found[0] if all(found) else "; ".join(filter(None, found))


class Certificates(Attacker):
    """Nobody signs what it heard for all to see. A second face of peer 1 goes around, and peer 2 gets a certificate.

    `round`: when it is shown; `hands`: the liars that sign that they pass it on.
    """

    def __init__(self, round: int, hands: Sequence[int]) -> None:
        self.round, self.hands = round, hands

    def compare(self, ctx: Context, phase: str, view: bytes) -> Any:
        return (None if named(phase) == "report" else view), {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Mapping[int, Sequence[Relayed]]:
        if named(phase) != "report" or ctx.peer != 3:
            return {}
        said = (vouched(ctx, signed(ctx, 1, phase, b"second face"), 3),) if round == 1 else ()
        shown = (certificate(ctx, phase, 2, self.hands, range(5)),) if round == self.round else ()
        return {0: said, 2: (*said, *shown), 4: said}


class OwnCertificates(Attacker):
    """Peer 1 says something else to peer 2, and each honest peer gets a certificate of its own, signed by liars."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        other = named(phase) == "report" and ctx.peer == 1 and message is not None
        return message, {2: sign(replace(payload, norms=tuple(2 * x for x in payload.norms)))} if other else {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Mapping[int, Sequence[Relayed]]:
        if named(phase) != "report" or ctx.peer != 3 or round != 1:
            return {}
        return {honest: (certificate(ctx, phase, honest, LIARS[:1], LIARS),) for honest in (0, 2, 4)}


def certificate(ctx: Context, phase: str, of: int, hands: Sequence[int], signers: Sequence[int]) -> Relayed:
    """One of what honest peer `of` heard, with the signatures of `signers`, passed on by these `hands`."""
    on = ctx.record.vouches[of].statement
    vouches = {**ctx.record.vouches, **{liar: Vouch(on, identity(liar).sign(on)) for liar in LIARS}}
    first, *rest = hands
    message = certify(replace(ctx.record, vouches=vouches), phase, first, identity(first), signers)
    passed = relay_digest(message.digest(ctx.record.context))
    return Relayed(message, tuple((liar, identity(liar).sign(passed)) for liar in rest))


def _of(attacker: Attacker) -> str:
    return damage(cohort(dict.fromkeys(LIARS, attacker), validators=0), 3)


def certificate_at_any_time() -> str:
    return _of(Certificates(3, LIARS))


def certificate_of_some() -> str:
    return _of(OwnCertificates())


def certificates_without_a_round() -> str:
    return _of(Certificates(2, LIARS))
