"""What healing cannot see: the limits that docs/threat-model.md names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from btard.attacks.healing import HitAndRun
from btard.protocol.collusion import Collusion
from btard.protocol.effects import Losses
from btard.protocol.heal import measured
from btard.task import QuadraticTask
from tests.protocol.healing import MEMBERS, PEERS, RATE, START, Cohort, D, Tensors, check


@pytest.mark.parametrize("examples", [1, 2])
def test_a_batch_too_small_to_compare_on_has_nobody_removed(examples: int) -> None:
    values = torch.arange(2 * examples, dtype=torch.float64).view(2, examples)
    said = measured(Losses((bytes(32), bytes(32)), values))
    assert said.fits(2) and (examples > 1 or said.bounds[0] >= 0)


def test_what_the_public_loss_does_not_show_stays() -> None:
    """A back door: parameters that hardly matter for the public batch."""

    class Indoors(QuadraticTask):
        def public_losses(self, params: torch.Tensor, seed: bytes) -> torch.Tensor:
            return super().public_losses(torch.cat((params[: D // 2], torch.zeros(D - D // 2))), seed)

    class BackDoor(HitAndRun):
        def gradient(self, ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            changed = super().gradient(ctx, gradient)
            return torch.cat((gradient[: D // 2], changed[D // 2 :]))

    collusion = Collusion(MEMBERS, PEERS, 0)
    behaviours = {i: BackDoor(collusion=collusion, start=START) for i in MEMBERS}
    cohort = Cohort(behaviours, Indoors(D)).advance(START + 6)
    assert cohort.healings and check(cohort) == 0
    shown, hidden = cohort.state_now["parameters"].square().split(D // 2)
    assert float(hidden.sum()) > 10 * float(shown.sum())


@pytest.mark.parametrize(("hurt", "seen"), [(8, False), (9, True)])
def test_harm_to_fewer_than_nine_of_512_examples_is_not_seen_however_large(hurt: int, seen: bool) -> None:
    """All of the harm lies in so few examples that it might be chance: a rare class can be wiped out."""
    values = torch.zeros(2, 512, dtype=torch.float64)
    values[1, :hurt] = 1000.0
    assert (measured(Losses((bytes(32), bytes(32)), values)).bounds[0] < 0) == seen


class WithAdam(Cohort):
    """The optimizer divides by the root of a mean over a thousand squared gradients."""

    def applied(self, state: Tensors, gradient: torch.Tensor, back_to: int | None) -> Tensors:
        if back_to is not None:
            return self.earlier[back_to]
        squares = state["momentum"] * 0.999 + 0.001 * gradient.square()
        return {"parameters": state["parameters"] - RATE / 10 * gradient / (squares / 0.02).sqrt(), "momentum": squares}


def test_harm_to_the_optimizer_alone_is_not_seen() -> None:
    """One huge gradient makes all later steps tiny: no earlier state is better, and there is hardly any progress."""

    class Poison(HitAndRun):
        def gradient(self, ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            signs = torch.ones(D)
            signs[::2] = -1
            return signs * super().gradient(ctx, gradient)

    def run(start: int) -> WithAdam:
        poison = Poison(collusion=Collusion(frozenset({1}), PEERS, 0), start=start, hits=1)
        cohort = WithAdam({1: poison}, byzantine=1, tau=1e6)
        cohort.state_now["momentum"].fill_(0.5)
        cohort.advance(START + 20)
        return cohort

    attacked, clean = run(START), run(1000)
    assert attacked.healings and check(attacked) == 0
    progress = {
        cohort: float(cohort.earlier[START + 1]["parameters"].norm() - cohort.state_now["parameters"].norm())
        for cohort in (attacked, clean)
    }
    assert progress[attacked] < 0.1 * progress[clean]
