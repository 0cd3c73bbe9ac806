"""Attacks on what peers say along with a comparison, before they know that all have heard the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch

from btard.attacks.speech import named
from btard.drivers.links import Links
from btard.protocol import wire
from btard.protocol.behaviour import Context
from btard.protocol.coin import coin_commitment, combine
from btard.protocol.identity import Identity
from btard.protocol.messages import CoinCommit, CoinReveal
from btard.protocol.signed import Relayed, Signed
from tests.hunt.by_hand.broadcasts import signed, vouched
from tests.hunt.by_hand.cohort import cohort, damage
from tests.protocol.promises import Attacker, Away

RUN = "by hand"
LIARS = (1, 3)


def revealed(ctx: Context) -> dict[int, CoinReveal]:
    """What has been revealed along with the comparison of the commitments."""
    said = ctx.record.heard.get("coin_reveal/0", {})
    return {peer: messages[0].open(CoinReveal, 10_000) for peer, messages in said.items()}


class CommitsLast(Attacker):
    """Peer 1 commits through its fellow, once that one knows what the others reveal, so that the coin begins with 0."""

    def __init__(self) -> None:
        self.chosen = CoinReveal(bytes(32), bytes(32))

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if ctx.peer != 1 or not phase.startswith("coin"):
            return message, {}
        if phase == "coin_reveal/0/lacks":
            return message, {}
        return (sign(self.chosen) if phase == "coin_reveal/0/again" else None), {}

    def compare(self, ctx: Context, phase: str, view: bytes) -> Any:
        return (None if phase == "coin_commit/0" else view), {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Mapping[int, Sequence[Relayed]]:
        if phase != "coin_commit/0" or round != 1 or ctx.peer != 3:
            return {}
        others = {peer: said for peer, said in revealed(ctx).items() if peer != 1}
        candidates = (CoinReveal(i.to_bytes(32, "big"), bytes(32)) for i in range(10_000))
        self.chosen = next(one for one in candidates if combine(RUN, ctx.step, {**others, 1: one})[0] == 0)
        commitment = CoinCommit(coin_commitment(RUN, ctx.step, 0, 1, self.chosen))
        said = signed(ctx, 1, phase, wire.encode(commitment))
        return dict.fromkeys((0, 2, 4), (vouched(ctx, said, 3),))


def revealed_at_once() -> str:
    driver = cohort(dict.fromkeys(LIARS, CommitsLast()), validators=0)
    broken = damage(driver, 4)
    coins = driver.honest[0].coins[2:]
    return broken or ("liars choose the coin" if all(coin[0] == 0 for coin in coins) else "")


class AnnouncesLast(Attacker):
    """Peer 1 announces through its fellow, once that one knows what the others reveal."""

    seen = False

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if ctx.peer != 1 or phase != "announce":
            return message, {}
        self.kept = message
        return None, {}

    def compare(self, ctx: Context, phase: str, view: bytes) -> Any:
        return (None if phase == "announce" else view), {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Mapping[int, Sequence[Relayed]]:
        if phase != "announce" or round != 1 or ctx.peer != 3:
            return {}
        self.seen |= revealed(ctx).keys() >= {0, 2, 4}
        return dict.fromkeys((0, 2, 4), (vouched(ctx, self.kept, 3),))


def revealed_without_announcements() -> str:
    liars = AnnouncesLast()
    driver = cohort(dict.fromkeys(LIARS, liars), validators=0)
    broken = damage(driver, 2)
    announced = 1 in driver.honest[0].active and liars.seen
    return broken or ("an owner announces when it knows the coin" if announced else "")


class WithholdsFromOne(Attacker):
    """Sends everybody its aggregate, but for peer 2."""

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return None if recipient == 2 else value


def revealed_without_aggregates() -> str:
    return damage(cohort({1: WithholdsFromOne()}), 2)


class FallsOut(Attacker):
    """The liars see all reveals, and show second commitments of those without whom the coin is the smallest."""

    coin = b""

    def compare(self, ctx: Context, phase: str, view: bytes) -> Any:
        return (None if phase == "coin_commit/0" else view), {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Mapping[int, Sequence[Relayed]]:
        reveals = revealed(ctx)
        if phase != "coin_commit/0" or round != 1 or not reveals.keys() >= set(ctx.record.members):
            return outgoing
        outs = [out for count in (1, 2) for out in combinations(LIARS, count)]
        coins = {out: combine(RUN, ctx.step, {i: r for i, r in reveals.items() if i not in out}) for out in outs}
        best = min(outs, key=lambda out: coins[out])
        FallsOut.coin = coins[best]
        [fellow] = set(LIARS) - {ctx.peer}
        if fellow not in best:
            return outgoing
        face = signed(ctx, fellow, phase, wire.encode(CoinCommit(bytes(32))))
        return {**outgoing, **dict.fromkeys((0, 2, 4), (vouched(ctx, face, ctx.peer),))}


def coin_without_faces() -> str:
    driver = cohort(dict.fromkeys(LIARS, FallsOut()), validators=0)
    FallsOut.coin = b""
    broken = damage(driver, 2)
    return broken or ("liars choose the coin" if driver.honest[0].coins[-1] == FallsOut.coin else "")


class TellsAllButOne(Attacker):
    """Says nothing to peer 2 in a phase."""

    def __init__(self, phase: str) -> None:
        self.phase = phase

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return message, {2: None} if named(phase) == self.phase else {}


def reveals_not_again() -> str:
    return damage(cohort({1: TellsAllButOne("coin_commit")}), 3)


def reports_not_again() -> str:
    return damage(cohort({1: TellsAllButOne("coin_reveal")}), 3)


class OneLost(Links):
    """Peer 2 does not hear peer 0 in the roll call."""

    def lost(self, step: int, phase: str, peers: int, *, acknowledged: bool) -> np.ndarray | None:
        lost = np.zeros((peers, peers), dtype=bool)
        lost[0, 2] = phase == "commit"
        return lost


def parts_once() -> str:
    driver = cohort({}, byzantine=1, links=OneLost())
    broken = damage(driver, 2)
    removed = [peer for entry in driver.honest[0].ledger.entries for peer in entry.peers]
    return broken or (f"honest peers {removed} removed" if removed else "")


class Unheard(Links):
    """Nobody else hears peer 0 in the roll call of step 1."""

    def lost(self, step: int, phase: str, peers: int, *, acknowledged: bool) -> np.ndarray | None:
        lost = np.zeros((peers, peers), dtype=bool)
        lost[0, 1:] = step == 1 and phase == "commit"
        return lost


def unheard_unsure() -> str:
    return damage(cohort({}, byzantine=1, links=Unheard()), 3)


def told_by_the_unheard() -> str:
    away = Away(lambda ctx: ctx.step == 1)
    return damage(cohort({2: away}, peers=7, byzantine=0, relays=1, validators=0, links=Unheard()), 3)


class Denies(Attacker):
    """Signs nothing of what it has heard."""

    def compare(self, ctx: Context, phase: str, view: bytes) -> Any:
        return None, {}


def listeners_guess() -> str:
    driver = cohort({1: Denies()}, probation=4)
    driver.join(Identity.from_seed("newcomer"))
    return damage(driver, 4)
