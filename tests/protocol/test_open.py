"""Attacks that work today ("Known to be open" in docs/threat-model.md): each has to fail once its gap is closed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from btard.drivers.local import LocalDriver
from btard.protocol.config import ProtocolConfig
from btard.protocol.messages import Signed
from btard.task import QuadraticTask
from tests.protocol.test_promises import Attacker, Context, View, play

D = 60
TOLERANT = pytest.param(
    "tolerant", marks=pytest.mark.xfail(strict=True, reason="a target that is away is not accused, nor checked again")
)


class AwayWhenChecked(Attacker):
    """Sends wrong gradients, and misses the roll call of every step in which it is a validator's target."""

    fellows = frozenset({1, 2, 3})

    def _checked(self, ctx: View) -> bool:
        return ctx.peer in ctx.assignments.values() and ctx.peer not in ctx.assignments

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return gradient if self._checked(ctx) else -3 * gradient

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return None if self._checked(ctx) else message, {}


@pytest.mark.parametrize("validation", ["exact", TOLERANT])
def test_a_target_does_not_escape_by_being_away(validation: Any) -> None:
    members = AwayWhenChecked.fellows
    config = ProtocolConfig(peers=8, byzantine=3, run_id="absent", validation=validation)
    driver = LocalDriver(config, QuadraticTask(D), behaviours={i: AwayWhenChecked() for i in members})
    play(driver, 60, torch.ones(D))
    assert not members & set(driver.peers), "they attack for ever"
