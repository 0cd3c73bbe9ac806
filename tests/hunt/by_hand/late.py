"""Attacks by way of honest peers that are late: what these say or pass on reaches some peers and not others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from btard.drivers.links import Links
from btard.protocol import wire
from btard.protocol.behaviour import Context
from btard.protocol.certificate import certify
from btard.protocol.identity import Identity
from btard.protocol.messages import Commit, Join, JoinRequest
from btard.protocol.signed import Relayed, Signed, Vouch, relay_digest
from tests.hunt.by_hand.broadcasts import identity, signed, vouched
from tests.hunt.by_hand.cohort import cohort, damage
from tests.protocol.promises import Attacker, Away

STEP, LIARS, DEAF, AWAY = 2, (1, 3), 0, 6


class Deaf(Links):
    """In one phase, peer 0 does not hear the one that is away; or, in the roll call, nobody but liar 1 hears peer 4."""

    def __init__(self, phase: str) -> None:
        super().__init__()
        self.phase = phase

    def lost(self, step: int, phase: str, peers: int, *, acknowledged: bool) -> np.ndarray | None:
        lost = np.zeros((peers, peers), dtype=bool)
        if step == STEP and phase == self.phase == "commit":
            lost[4, [peer for peer in range(peers) if peer not in (1, 4)]] = True
        elif step == STEP and phase == self.phase:
            lost[AWAY, DEAF] = True
        return lost


class Denies(Attacker):
    """Signs nothing in the roll call, and says nothing in its relays."""

    def compare(self, ctx: Context, phase: str, view: bytes) -> Any:
        return (None if phase == "commit" and ctx.step == STEP else view), {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        return self.shown(ctx, round) if phase == "commit" and ctx.step == STEP else outgoing

    def shown(self, ctx: Context, round: int) -> Mapping[int, Sequence[Relayed]]:
        return {}


class ShowsFace(Denies):
    """Shows the one that is away, and nobody else, a second commitment of its fellow."""

    def shown(self, ctx: Context, round: int) -> Mapping[int, Sequence[Relayed]]:
        if ctx.peer != 3 or round != 1:
            return {}
        other = wire.encode(Commit((bytes(32),) * ctx.record.cut.k))
        return {AWAY: (vouched(ctx, signed(ctx, 1, "commit", other), 3),)}


class ShowsCertificate(Denies):
    """Shows the one that is away, and nobody else, a certificate with the hands of all liars."""

    def shown(self, ctx: Context, round: int) -> Mapping[int, Sequence[Relayed]]:
        if ctx.peer != 3 or round != 2:
            return {}
        on = ctx.record.vouches[AWAY].statement
        vouches = {**ctx.record.vouches, **{liar: Vouch(on, identity(liar).sign(on)) for liar in LIARS}}
        made = certify(replace(ctx.record, vouches=vouches), "commit", 1, identity(1), (0, 1, 2, 3, 4, 5))
        passed = relay_digest(made.digest(ctx.record.context))
        return {AWAY: (Relayed(made, ((3, identity(3).sign(passed)),)),)}


class KeepsCommitment(Denies):
    """Passes on the commitment of a late peer to one other peer, in the last of as many rounds as there are liars."""

    def shown(self, ctx: Context, round: int) -> Mapping[int, Sequence[Relayed]]:
        said: tuple[Signed, ...] = ctx.record.heard["commit"].get(4, ())
        return {0: (vouched(ctx, said[0], 1),)} if round == 1 and said else {}


class Faint(Links):
    """In step 3 nobody hears peer 4 in the roll call, and peer 0 alone what it passes on."""

    def lost(self, step: int, phase: str, peers: int, *, acknowledged: bool) -> np.ndarray | None:
        lost = np.zeros((peers, peers), dtype=bool)
        if step == 3:
            lost[4, :4] = phase == "commit"
            lost[4, [1, 2, 3]] |= phase.startswith(("commit/relay", "part"))
        return lost


class TwoFaced(Attacker):
    """A newcomer that commits to one thing towards peer 1, and to another towards the late peer 4."""

    def active(self, step: int) -> bool:
        return True

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase == "commit" and ctx.step == 3:
            return None, {1: message, 4: sign(Commit((bytes(32),) * len(payload.digests), payload.after))}
        return message, {}


def late_hands_of_newcomers() -> str:
    driver = cohort({}, probation=4, validators=0, links=Faint())
    driver.join(Identity.from_seed("newcomer"), TwoFaced())
    return damage(driver, 6)


def late_hands() -> str:
    away = Away(lambda ctx: ctx.step == STEP)
    for liar, late in ((ShowsFace, 2), (ShowsFace, 4), (ShowsCertificate, 3), (ShowsCertificate, 5)):
        liars = dict.fromkeys(LIARS, liar())
        driver = cohort({**liars, AWAY: away}, peers=7, byzantine=2, links=Deaf(f"commit/relay/{late}"))
        if broken := damage(driver, 4):
            return broken
    return damage(cohort({1: KeepsCommitment()}, links=Deaf("commit")), 3) or late_hands_of_newcomers()


class Silent(Attacker):
    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return (None if ctx.step == 1 and phase.startswith("report") else message), {}


class TradesPlaces(Attacker):
    """Withholds its aggregate from one honest peer: both go."""

    def __init__(self, victim: int) -> None:
        self.victim = victim

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: Any) -> Any:
        return None if ctx.step == STEP and recipient == self.victim else value


class TellsTheAway(Attacker):
    """Says something else to the one that is away, after the eliminations."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if ctx.step == STEP and phase == "heal" and message is not None and 10 in ctx.record.listeners:
            return message, {10: sign(replace(payload, losses=payload.losses[:-1]))}
        return message, {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        return {} if phase == "heal" else outgoing


def told_after_eliminations() -> str:
    away = Away(lambda ctx: ctx.step == STEP)
    liars = {0: Silent(), 1: TradesPlaces(5), 2: TradesPlaces(6), 3: TellsTheAway()}
    return damage(cohort({**liars, 10: away}, peers=11, heal=4), 4)


class Unheard(Links):
    """Nobody hears peer 0 in the relays of one `join`; it hears everybody."""

    def lost(self, step: int, phase: str, peers: int, *, acknowledged: bool) -> np.ndarray | None:
        lost = np.zeros((peers, peers), dtype=bool)
        lost[0, 1:] = step == STEP and phase.startswith("join/relay")
        return lost


class Brings(Attacker):
    """Names a Sybil's request, and tells its fellow alone."""

    said: Signed

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if ctx.step != STEP or phase != "join":
            return message, {}
        self.said = sign(Join((JoinRequest.create(Identity.from_seed("sybil"), ctx.run_id),)))
        return None, {}


class Splits(Attacker):
    """Signs what it heard for the late peer alone, which so has a certificate, and hands the request to the others."""

    def __init__(self, fellow: Brings) -> None:
        self.fellow = fellow

    def compare(self, ctx: Context, phase: str, view: bytes) -> Any:
        return (None, {0: view}) if ctx.step == STEP and phase == "join" else (view, {})

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        if ctx.step != STEP or phase != "join" or round != 1:
            return outgoing
        return dict.fromkeys([peer for peer in ctx.active if peer], (vouched(ctx, self.fellow.said, ctx.peer),))


def other_join_counts() -> str:
    brings = Brings()
    liars = {5: brings, 4: Splits(brings)}
    return damage(cohort(liars, peers=6, probation=30, links=Unheard()), 4)
