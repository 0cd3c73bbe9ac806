"""A tiny task and a cohort runner shared by the protocol's tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from btard.drivers.local import LocalDriver
from btard.drivers.task import StepResult
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.hashing import stream


class QuadraticTask:
    """Noisy gradients of ||x||^2 / 2: cheap, and every gradient is a function of parameters and seed alone."""

    def __init__(self, d: int, noise: float = 1.0) -> None:
        self.d, self.noise = d, noise
        self.requests: list[Compute] = []

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor) -> None:
        self.requests += requests
        for request, row in zip(requests, out, strict=True):
            noise = stream("quadratic", request.seed).standard_normal(self.d, dtype=np.float32)
            row.copy_(params + self.noise * torch.from_numpy(noise).to(params.device))
            if request.flip_labels:
                row.neg_()


class Run:
    """A finished run: parameters, the ledger's entries in order, and the driver for a closer look."""

    def __init__(self, driver: LocalDriver, params: torch.Tensor, results: list[StepResult]) -> None:
        self.driver, self.params, self.results = driver, params, results
        self.entries = [entry for result in results for entry in result.removed]
        self.removed = {peer: entry for entry in reversed(self.entries) for peer in entry.peers}


def run_cohort(
    behaviours: dict[int, Behaviour] | None = None,
    *,
    peers: int = 8,
    steps: int = 6,
    d: int = 101,
    seed: int = 0,
    collusion: Collusion | None = None,
    mode: str = "batched",
    until_banned: frozenset[int] = frozenset(),
    **settings: object,
) -> Run:
    """Train the quadratic with `behaviours` plugged in, the rest honest: `steps` steps, or until those are banned."""
    behaviours = behaviours or {}
    byzantine = sum(behaviour.byzantine for behaviour in behaviours.values())
    config = ProtocolConfig(**{"peers": peers, "byzantine": byzantine, "run_id": f"test {seed}", **settings})  # type: ignore[arg-type]
    driver = LocalDriver(config, QuadraticTask(d), behaviours=behaviours, collusion=collusion, mode=mode)  # type: ignore[arg-type]
    params, results = torch.ones(d), []
    for _ in range(steps):
        results.append(driver.step(params))
        params = params - 0.1 * results[-1].gradient
        if until_banned and not until_banned & set(results[-1].active):
            break
    return Run(driver, params, results)
