"""Attacks on `wire: float16`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from btard.protocol.behaviour import Context
from btard.protocol.effects import Compute
from btard.protocol.half import from_half, to_half
from btard.protocol.messages import Signed
from btard.task import QuadraticTask
from tests.hunt.by_hand.cohort import Attacker, D, cohort, damage


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
