"""LAMB as the authors' code has it: norms clamped at 10,000, bias correction by the run's steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from albert.config import OptimizerConfig
from albert.optimizer import Optimizer

NORM = 39.0
"""Of the tensor: more than the 10 at which the library would clamp it."""


def stepped(step: int, **changes: float) -> float:
    """How far one step from zero moments moves a tensor of norm `NORM`, in units of the learning rate times NORM."""
    model = nn.Linear(13, 3, bias=False)
    with torch.no_grad():
        model.weight.fill_(NORM / math.sqrt(39))
    config = OptimizerConfig(lr=0.01, warmup_steps=0, schedule_steps=10**9, weight_decay=0.0, **changes)
    optimizer = Optimizer(model, config)
    before = optimizer.params.clone()
    optimizer.apply(torch.linspace(-1, 1, 39), step)
    return float((optimizer.params - before).norm()) / (0.01 * NORM)


def test_the_trust_ratio_counts_the_whole_norm_unless_it_is_clamped() -> None:
    assert stepped(0, bias_correction=False) == pytest.approx(1, rel=1e-3)
    assert stepped(0, bias_correction=False, clamp=10.0) == pytest.approx(10 / NORM, rel=1e-3)


@pytest.mark.parametrize("step", [0, 9, 9999])
def test_the_correction_follows_the_steps_of_the_run(step: int) -> None:
    expected = math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
    assert stepped(step) == pytest.approx(expected, rel=1e-3)
