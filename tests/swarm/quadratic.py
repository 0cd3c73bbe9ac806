"""A task of the tests, for `--task tests.swarm.quadratic:make`: a swarm needs no more to train something."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from btard.drivers.task import QuadraticTask

from btard.protocol.effects import Compute, Purpose
from btard.swarm.config import SwarmConfig


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


class Quadratic:
    """Noisy gradients; the loss is that without the noise."""

    def __init__(self, config: Config) -> None:
        self.d, self.loss = config.d, math.nan
        self._task = QuadraticTask(config.d, config.noise)

    def gradient(
        self, params: torch.Tensor, request: Compute, workers: int, too_late: Callable[[], bool]
    ) -> torch.Tensor | None:
        """The gradient [d] of the request's batch."""
        out = torch.empty(1, self.d)
        self._task.gradients(params, [request], out)
        if request.purpose is Purpose.TRAIN:
            self.loss = float(params @ params) / 2
        return out[0]

    def samples(self, workers: int) -> int:
        return 1

    def agreed(self) -> Mapping[str, Any]:
        return {}


class Descent:
    """Gradient descent from ones."""

    def __init__(self, d: int) -> None:
        self.params = torch.ones(d)

    def lr(self, step: int) -> float:
        return 0.1

    def apply(self, gradient: torch.Tensor, step: int) -> None:
        self.params -= self.lr(step) * gradient

    def state(self) -> dict[str, torch.Tensor]:
        return {"parameters": self.params}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.params.copy_(tensors["parameters"])


def make(config: Config) -> tuple[Quadratic, Descent]:
    """Task and optimizer."""
    return Quadratic(config), Descent(config.d)


def from_any_settings(config: SwarmConfig) -> tuple[Quadratic, Descent]:
    """The same, of the settings that every swarm has."""
    return make(Config())


def from_no_settings(config: int) -> None:
    """Cannot be a task."""
