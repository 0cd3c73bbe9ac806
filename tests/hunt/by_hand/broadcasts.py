"""Attacks on what peers hear: second messages, from elsewhere or too long to be passed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from btard.attacks.speech import named
from btard.protocol.behaviour import Context
from btard.protocol.identity import Identity
from btard.protocol.limits import Limits, relay_limit
from btard.protocol.messages import Report
from btard.protocol.signed import Relayed, Signed, relay_digest
from tests.hunt.by_hand.cohort import cohort, damage
from tests.protocol.promises import Attacker


class Relays(Attacker):
    """Adds `made` (phase, round -> recipient -> messages) to what it passes on.

    It signs nothing of what it heard, for with a certificate nobody listens.
    """

    def __init__(self, made: Callable[[Context, str, int], Mapping[int, Sequence[Relayed]]]) -> None:
        self.made = made

    def compare(self, ctx: Context, phase: str, view: bytes) -> Any:
        return None, {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        added = self.made(ctx, phase, round)
        return {to: (*outgoing.get(to, ()), *added.get(to, ())) for to in {*outgoing, *added}}


def identity(peer: int) -> Identity:
    return Identity.from_seed("by hand", peer)


def signed(ctx: Context, sender: int, phase: str, payload: bytes) -> Signed:
    unsigned = Signed(sender, ctx.step, phase, payload, b"")
    return replace(unsigned, signed=identity(sender).sign(unsigned.digest(ctx.record.context)))


def vouched(ctx: Context, message: Signed, relayer: int) -> Relayed:
    return Relayed(message, ((relayer, identity(relayer).sign(relay_digest(message.digest(ctx.record.context)))),))


def own_relayer() -> str:
    def second_face(ctx: Context, phase: str, round: int) -> Mapping[int, Sequence[Relayed]]:
        if named(phase) != "report" or round != 1:
            return {}
        return {2: (vouched(ctx, signed(ctx, 1, phase, b"second face"), 1),)}

    return damage(cohort({1: Relays(second_face)}, validators=0), 3)


def relayed_without_limit() -> str:
    """Peer 3 passes on a second message of peer 1, as long as a round of relays may be, to one honest peer."""

    def longest(ctx: Context, phase: str, round: int) -> Mapping[int, Sequence[Relayed]]:
        if named(phase) != "report" or round != 1:
            return {}
        bound = relay_limit(6, Limits(6, 1).message(Report))
        room = bound - vouched(ctx, signed(ctx, 1, phase, b""), 3).nbytes
        return {2: (vouched(ctx, signed(ctx, 1, phase, bytes(room)), 3),)}

    quiet = Relays(lambda ctx, phase, round: {})
    return damage(cohort({1: quiet, 3: Relays(longest)}, peers=6, validators=0), 3)


def any_phase() -> str:
    def from_the_phase_before(ctx: Context, phase: str, round: int) -> Mapping[int, Sequence[Relayed]]:
        if phase != "coin_reveal/0/again" or round != 1:
            return {}
        [said] = ctx.record.heard["coin_commit/0"][2]
        again = replace(said, phase=phase)
        return dict.fromkeys((0, 2, 3, 4), (vouched(ctx, again, 1),))

    return damage(cohort({1: Relays(from_the_phase_before)}, validators=0), 3)
