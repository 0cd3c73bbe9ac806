"""Attacks on newcomers, and by them."""

from __future__ import annotations

from typing import Any

import torch

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.download import Download
from btard.protocol.identity import Identity
from btard.protocol.messages import FALSE_CLAIM, Claim
from btard.protocol.signed import Relayed
from btard.protocol.snapshot import public_state
from tests.hunt.by_hand.cohort import cohort, damage
from tests.protocol.promises import Attacker, D


class WhispersToNewcomers(Attacker):
    """Tells newcomers that nobody but itself has said anything."""

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        if round != 0 or phase != "coin_commit/0":
            return outgoing
        mine = tuple(Relayed(said, ()) for said in ctx.record.heard[phase].get(ctx.peer, ()))
        return dict.fromkeys(ctx.record.newcomers, mine)


def told_by_one() -> str:
    driver = cohort({1: WhispersToNewcomers()}, probation=4)
    driver.join(Identity.from_seed("newcomer"))
    return damage(driver, 5)


class Idler(Behaviour):
    """A newcomer that computes nothing."""

    byzantine = True

    def active(self, step: int) -> bool:
        return True

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(gradient)


class Lenient(Attacker):
    """A validator that finds nothing."""

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return ()


def one_checker() -> str:
    driver = cohort(
        {1: Lenient(), 3: Lenient()}, peers=6, probation=1, run_id="checker 0"
    )  # where it is checked by these
    driver.join(Identity.from_seed("idler"), Idler())
    broken = damage(driver, 6)
    member = any(entry.kind == "member" for entry in driver.honest[0].ledger.entries)
    return broken or ("who has computed nothing is a member" if member else "")


class Leaves(Lenient):
    """Is silent as soon as it has cleared a newcomer."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Any, sign: Any) -> Any:
        done = any(ctx.peer in standing.cleared for standing in ctx.record.standings.values())
        return (None if done and phase != "commit" else message), {}


class ComesAfter(Lenient):
    """Byzantine once peer 1 is gone: there is never more than one."""

    def acts(self, ctx: Any) -> bool:
        return 1 not in ctx.active


def cleared_by_the_gone(run_id: str = "gone 105") -> str:
    """`run_id`: one with which these two check the idler before anybody honest does, who checks the other newcomer."""
    driver = cohort({1: Leaves(), 3: ComesAfter()}, byzantine=1, probation=2, run_id=run_id)
    idler = driver.join(Identity.from_seed("idler"), Idler())
    driver.join(Identity.from_seed("honest"))
    broken = damage(driver, 7)
    member = any(entry.kind == "member" and entry.accused == idler.peer for entry in driver.honest[0].ledger.entries)
    return broken or ("who has computed nothing is a member" if member else "")


class Trades(Attacker):
    """Sends a part to all but its victim, in step 1: both lose their places."""

    def __init__(self, victim: int) -> None:
        self.victim = victim

    def dispatch(self, ctx: Context, phase: str, packets: Any) -> Any:
        return {to: sent for to, sent in packets.items() if to != self.victim or phase != "part" or ctx.step != 1}


class WrongOnce(Attacker):
    """Its gradient is wrong in one step; it votes against whoever says so."""

    def __init__(self, step: int) -> None:
        self.step = step

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return -3 * gradient if ctx.step == self.step else gradient

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        return FALSE_CLAIM


def todays_bound(run_id: str = "bound 1", step: int = 14) -> str:
    """`run_id`, `step`: where both newcomers become members at the end of the step, and an honest peer checks the liar.

    Three are left of seven, two of them honest; with the newcomers five, of whom two may be liars.
    """
    behaviours = {4: WrongOnce(step), 5: Trades(0), 6: Trades(1)}
    driver = cohort(behaviours, peers=7, probation=12, max_newcomers=2, validation="tolerant", run_id=run_id, tau=1.0)
    broken = damage(driver, 2)
    for name in ("one", "two"):
        driver.join(Identity.from_seed(name))
    return broken or damage(driver, step)


class ServesItsOwnState(Attacker):
    """Vouches for a state with other parameters, and serves it."""

    def __init__(self) -> None:
        self.driver: list[LocalDriver] = []

    def active(self, step: int) -> bool:
        return True

    def _forged(self, ctx: Context) -> Download:
        return Download(public_state(self.driver[0].peers[ctx.peer]), {"parameters": torch.zeros(D)})

    def vouch(self, ctx: Context, hashed: bytes) -> bytes:
        return self._forged(ctx).digest(ctx.run_id)

    def serve(self, ctx: Context, download: Download) -> Download:
        return self._forged(ctx)


def state_of_one() -> str:
    attacker, taken = ServesItsOwnState(), list[torch.Tensor]()
    driver = cohort({0: attacker}, probation=4)
    attacker.driver.append(driver)
    driver.join(Identity.from_seed("newcomer"), receive=lambda tensors: taken.append(tensors["parameters"]))
    broken = damage(driver, 3)
    if broken or not taken:
        return broken
    return "a newcomer has a state that one member made up" if not bool(taken[0].any()) else ""
