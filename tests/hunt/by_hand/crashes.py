"""Attacks by way of honest peers that fall silent in the middle of a step, which liars see before they speak."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from msgspec.structs import replace

from btard.attacks.speech import signed_bytes
from btard.drivers.links import Links
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.messages import FALSE_CLAIM, Claim, Report
from btard.protocol.signed import Signed
from tests.hunt.by_hand.cohort import cohort, damage
from tests.protocol.promises import Attacker, Away, D

STEP, HUGE = 1, 1e6


class Crashes(Attacker):
    """An honest peer whose process dies when `phase` begins: no liar, though it is removed like one."""

    def __init__(self, phase: str) -> None:
        self.phase = phase

    def crashed(self, ctx: Context, phase: str) -> bool:
        return ctx.step == STEP and phase.startswith(self.phase)


class Liar(Attacker):
    """Its aggregate is huge, and its report says that all is well."""

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(value, HUGE) if ctx.step == STEP else value

    def report(self, ctx: Context, report: Report) -> Report:
        none = tuple(0.0 for _ in report.norms)
        return replace(report, norms=none, products=tuple(tuple(0.0 for _ in of) for of in report.products))


class Leaves(Liar):
    """Says nothing that can be read at the coin's reveal."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        leaves = ctx.step == STEP and phase.startswith("coin_reveal/0")
        return (signed_bytes(ctx, phase, b"\xc1") if leaves else message), {}


class HandsOn(Attacker):
    """Sends its aggregate to `holders` alone, and hands it on to one other peer, before the reports."""

    def __init__(self, holders: Collection[int], other: int) -> None:
        self.holders, self.other = holders, other

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return value if ctx.step != STEP or recipient in self.holders else None

    def dispatch(self, ctx: Context, phase: str, packets: Mapping[int, Any]) -> Mapping[int, Any]:
        if not phase.startswith("recover"):
            return packets
        return {to: said for to, said in packets.items() if phase == "recover/0" and to == self.other}


class Dies(Crashes):
    """An honest owner whose last words, its aggregate among them, reach these peers alone."""

    def __init__(self, reached: Collection[int]) -> None:
        super().__init__("coin_reveal")
        self.reached = reached

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return value if ctx.step != STEP or recipient in self.reached else None

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        last = ctx.step == STEP and phase in ("announce", "coin_commit/0")
        return message, {i: None for i in ctx.active if last and i not in self.reached and i != ctx.peer}


class ShowsIts(Attacker):
    """A wrong report on `part`, whose aggregate it passes on to its validator of the next step alone."""

    def __init__(self, part: int, validators: Collection[int]) -> None:
        self.about, self.validators = part, validators

    def dispatch(self, ctx: Context, phase: str, packets: Mapping[int, Any]) -> Mapping[int, Any]:
        if ctx.step != STEP or not phase.startswith("recover"):
            return packets
        return {to: said for to, said in packets.items() if to in self.validators and phase == "recover/1"}

    def report(self, ctx: Context, report: Report) -> Report:
        norms = tuple(1.5 * norm if part == self.about else norm for part, norm in enumerate(report.norms))
        return replace(report, norms=norms) if ctx.step == STEP else report

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        return FALSE_CLAIM


class TellsNothing(Attacker):
    """Tells those that listen nothing."""

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        return {} if round == 0 else outgoing


class Slow(Links):
    """These peers have no gradient in time."""

    def __init__(self, peers: Collection[int]) -> None:
        super().__init__()
        self.peers = peers

    def late(self, step: int, peer: int) -> bool:
        return step == STEP and peer in self.peers


def _of(liar: Behaviour, crashing: Collection[int], phase: str, peers: int, **settings: Any) -> str:
    """`liar` has the highest number."""
    behaviours: dict[int, Behaviour] = {peers - 1: liar, **dict.fromkeys(crashing, Crashes(phase))}
    behaviours |= settings.pop("others", {})
    return damage(cohort(behaviours, peers=peers, byzantine=1, validators=0, **settings), 3, cut_off="cut off")


def silence_lacks() -> str:
    return _of(Leaves(), [0], "aggregate", 4)


def few_reports() -> str:
    return _of(Liar(), [0, 1], "report", 6, links=Slow([2, 3, 4]))


def holders_gone() -> str:
    last = {3: Crashes("recover/1")}
    return _of(HandsOn([0, 1, 2], 3), [0, 1, 2], "recover/0", 7, others=last)


def held_by_few(run_id: str = "held 8") -> str:
    """`run_id`: one with which the liar, 7, is not checking in step 1, and is checked in step 2."""
    checkers = list[int]()
    for _ in range(2):  # at first to see who checks it
        driver = cohort({7: Attacker()}, peers=8, validators=1, run_id=run_id)
        driver.step(torch.ones(D))
        [checks] = driver.honest[0].assignments
        owner, *others = (i for i in range(7) if i != checks)
        driver.peers[owner].behaviour = Dies([checks, *others[:2], 7])
        for holder in (checks, *others[:2]):
            driver.peers[holder].behaviour = Crashes("recover/0")
        part = [i for i in range(8) if i != checks].index(owner)
        driver.peers[7].behaviour = ShowsIts(part, checkers)
        broken = damage(driver, 1)
        checkers += [i for i, target in driver.honest[0].assignments.items() if target == 7]
    return broken or damage(driver, 1)


def the_silent_tell() -> str:
    away = Away(lambda ctx: ctx.step == STEP)
    return _of(TellsNothing(), [0], "coin_reveal/0", 5, others={3: away})
