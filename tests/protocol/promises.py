"""What the tests of broken promises share: an attacker, a peer that is away, and what must hold of honest peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from btard.attacks import make_attack
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.effects import Compute
from btard.protocol.messages import Claim
from btard.protocol.record import StepRecord
from btard.protocol.scalars import part_scalars
from btard.protocol.signed import Signed
from btard.protocol.split import Split
from btard.task import QuadraticTask, Task

D = 60


class Attacker(Behaviour):
    """Byzantine from step 1 on; it turns in no fellow."""

    byzantine = True
    fellows: frozenset[int] = frozenset()

    def active(self, step: int) -> bool:
        return step >= 1

    @property
    def resting(self) -> Behaviour:
        rested = Behaviour()
        rested.byzantine = True
        return rested

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return tuple(claim for claim in claims if claim.accused not in self.fellows)


class Away(Behaviour):
    """An honest peer that nobody hears in the steps in which `when` holds: its uplink is down."""

    def __init__(self, when: Callable[[Context], bool]) -> None:
        self.when = when

    def acts(self, ctx: Context) -> bool:
        return self.when(ctx)

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return None, {}

    def dispatch(self, ctx: Context, phase: str, packets: Any) -> Any:
        return {}


def away_at(*steps: int) -> Away:
    """Away in these steps, but for those in which it is a validator."""
    return Away(lambda ctx: ctx.step in steps and ctx.peer not in ctx.record.assignments)


def play(driver: LocalDriver, steps: int, params: torch.Tensor) -> list[StepResult]:
    """Train for `steps` steps from `params` [d]; raises if the honest peers disagree."""
    results = []
    for _ in range(steps):
        results.append(driver.step(params))
        params = params - 0.1 * results[-1].gradient
    return results


def check_honest(results: Sequence[StepResult], members: frozenset[int], *, largest: float = 30.0) -> None:
    """No honest peer was removed, and nothing far from the honest gradients was applied."""
    for result in results:
        for entry in result.removed:
            assert set(entry.peers) <= members, f"honest peers removed: {entry}"
        assert float(result.gradient.abs().max()) <= largest, f"step {result.step}: {result.gradient.abs().max():g}"


class HugeAggregate(Attacker):
    """Announces an aggregate of `size` in every entry and lets its fellows vote for it."""

    def __init__(self, fellows: frozenset[int], steps: Sequence[int], size: float) -> None:
        self.fellows, self.steps, self.size = fellows, steps, size

    def active(self, step: int) -> bool:
        return step in self.steps

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(value, self.size)

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return ()

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        return "excused"


def dodging(collusion: Collusion, *, shows: bool = False, twists: bool = False) -> Behaviour:
    """Hides wrong aggregates behind cooked reports, and is away whenever another colluder's report is checked.

    `shows`: whether it shows its own rows then. `twists`: whether its gradient is wrong in one entry of its own part.
    """
    attack = make_attack("colluding_aggregate", collusion, start=2, scale=2.0)
    usual = attack.say

    def say(ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        involved = {*ctx.assignments, *ctx.assignments.values()}
        checked = collusion.members.intersection(ctx.assignments.values())
        if phase == "commit" and checked and ctx.peer not in involved:
            return None, {}
        return usual(ctx, phase, payload, message, sign)

    def dispatch(ctx: Context, phase: str, packets: Any) -> Any:
        return packets if shows or not phase.startswith(("evidence", "pass")) else {}

    def gradient(ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        cut, changed = Split(len(gradient), len(ctx.record.planned)), gradient.clone()
        changed[cut.bounds(ctx.record.planned.index(ctx.peer))[0]] += 1e-3
        return changed

    attack.say, attack.dispatch = say, dispatch  # type: ignore[method-assign]
    if twists:
        attack.gradient = gradient  # type: ignore[method-assign]
    return attack


class OwnNumerics(QuadraticTask):
    """Gradients that differ a little from machine to machine."""

    def __init__(self, d: int, machine: int) -> None:
        super().__init__(d)
        self.machine = machine

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        out.mul_(1 + 1e-6 * (self.machine + 1))


def own_numerics(peers: int) -> dict[int, Task]:
    return {peer: OwnNumerics(D, peer) for peer in range(peers)}


def scalars_of(peer: Any, record: StepRecord, bodies: Sequence[torch.Tensor], part: int) -> list[tuple[float, ...]]:
    return [said.products for said in part_scalars(peer.peer, record, record.aggregates[part], bodies, part)]
