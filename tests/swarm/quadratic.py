"""A task of the tests, for `--task tests.swarm.quadratic:make`: a swarm needs no more to train something."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from btard.protocol.effects import Compute, Purpose
from btard.swarm.config import SwarmConfig
from btard.task import QuadraticTask


@dataclass(frozen=True, kw_only=True)
class Config(SwarmConfig):
    """A swarm that goes down ||x||^2 / 2."""

    d: int = 100
    """Number of parameters."""
    noise: float = 0.1
    """Of gradients."""

    def agreed(self) -> dict[str, Any]:
        """The settings that all peers have to have alike."""
        return super().agreed() | {"d": self.d, "noise": str(self.noise)}


class Quadratic(QuadraticTask):
    """Noisy gradients; the loss is that without the noise."""

    loss = math.nan

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        """Write the gradient of each request at `params` [d] into the rows of `out`."""
        super().gradients(params, requests, out)
        if any(request.purpose is Purpose.TRAIN for request in requests):
            self.loss = float(params @ params) / 2

    def samples(self, workers: int) -> int:
        """One for each peer."""
        return 1

    def agreed(self) -> Mapping[str, Any]:
        """Nothing beside the settings."""
        return {}


class Descent:
    """Gradient descent from ones."""

    def __init__(self, d: int) -> None:
        self.params = torch.ones(d)

    def lr(self, step: int) -> float:
        """Always the same."""
        return 0.1

    def apply(self, gradient: torch.Tensor, step: int) -> None:
        """Move the parameters."""
        self.params -= self.lr(step) * gradient

    def state(self) -> dict[str, torch.Tensor]:
        """The parameters."""
        return {"parameters": self.params}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take them over."""
        self.params.copy_(tensors["parameters"])


def make(config: Config) -> tuple[Quadratic, Descent]:
    """Task and optimizer."""
    return Quadratic(config.d, config.noise), Descent(config.d)


def from_any_settings(config: SwarmConfig) -> tuple[Quadratic, Descent]:
    """The same, of the settings that every swarm has."""
    return make(Config())


def from_no_settings(config: int) -> None:
    """Cannot be a task."""
