"""Attacks on `wire: float16`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from btard.protocol.behaviour import Context
from btard.protocol.effects import Compute
from btard.protocol.half import from_half, to_half
from btard.protocol.hashing import stream
from btard.protocol.messages import Claim
from btard.protocol.signed import Signed
from btard.task import QuadraticTask
from tests.hunt.by_hand.cohort import cohort, damage
from tests.protocol.promises import Attacker, D


class PartlyFrozen(QuadraticTask):
    """The first half of the parameters gets no gradient."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        out[:, : self.d // 2] = 0


class OtherZero(Attacker):
    """Announces the zeros that it owns with the exponent -0.0, and sends them to peers 1 and 2 alone."""

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        body = to_half(value)
        body[0] = -0.0
        return body

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return value if recipient in (1, 2) else None

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        for part, value in ctx.record.aggregates.items():  # it computes with values, as the others do
            if value.dtype is torch.float16:
                ctx.record.aggregates[part] = from_half(value)
        return message, {}


def two_bodies() -> str:
    """Three of five hold the part, so that it counts. One of the others goes in a trade; the last needs the part."""
    driver = cohort({0: OtherZero()}, task=PartlyFrozen(D), wire="float16", validators=0)
    return damage(driver, 3, cut_off="a member lacks a part that most others hold")


class NextToNothing(Attacker):
    """Some quanta in the parts that are zero."""

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        quanta = 2.0**-124 * (1 + (torch.arange(len(gradient)) + ctx.peer) % 7)
        return torch.where(gradient == 0, quanta, gradient)

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return ()


def tiny_halves() -> str:
    """In mode tolerant nobody goes for such a gradient, which is as good as the right one."""
    liars = {i: NextToNothing() for i in (5, 6, 7)}
    driver = cohort(liars, peers=8, task=PartlyFrozen(D), wire="float16", validation="tolerant")
    trials = 0
    for _ in range(4):
        broken = damage(driver, 1)
        if broken:
            return broken
        last = driver.honest[0].last
        trials += 0 if last is None else len(last.trials.get(0, ()))
    return f"{trials} trials of honest work" if trials else ""


class OtherMachine(QuadraticTask):
    """Each entry of the gradient is off by some 1e-6 of itself."""

    def __init__(self, peer: int) -> None:
        super().__init__(2000)
        self.peer = peer

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        out.mul_(1 + 1e-6 * torch.from_numpy(stream("machine", self.peer).standard_normal(self.d, dtype="float32")))


def rounded_tolerance() -> str:
    """Five times what the machines differ by, and a sixth of what their rounded gradients do."""
    tasks = {i: OtherMachine(i) for i in range(5)}
    settings: dict[str, Any] = {"validation": "tolerant", "wire": "float16", "gradient_tol": 5e-6}
    try:
        driver = cohort({}, task=QuadraticTask(2000), tasks=tasks, **settings)
    except ValueError:  # refused
        return ""
    params = torch.ones(2000)
    for _ in range(6):
        removed = driver.step(params).removed
        if removed:
            return f"honest peers {removed[0].peers} removed: {removed[0].kind}"
    return ""
