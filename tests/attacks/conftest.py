"""A tiny quadratic task, a cohort of attackers on it, and the context that a hook sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from btard.attacks import ATTACKS, Collusion, make_attack
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.protocol.behaviour import Context
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.hashing import digest, stream
from btard.protocol.record import StepRecord
from btard.protocol.split import Split


@dataclass
class Quadratic:
    """f(x) = ||x - e||^2 / 2 in `d` dimensions; the batch is the noise e. Wrong labels are the noise mirrored."""

    d: int = 40

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        for row, request in zip(out, requests, strict=True):
            noise = stream("noise", request.seed).standard_normal(self.d, dtype=np.float32)
            torch.sub(params, torch.from_numpy(-noise if request.flip_labels else noise), out=row)


@dataclass
class Run:
    """What happened in some steps of a cohort."""

    driver: LocalDriver
    collusion: Collusion
    results: list[StepResult]

    @property
    def removed(self) -> dict[int, tuple[int, str]]:
        """Peer -> step and kind of the entry that took it out."""
        return {p: (e.step, e.kind) for result in self.results for e in result.removed for p in e.peers}

    @property
    def honest_removed(self) -> set[int]:
        return set(self.removed) - self.collusion.members


def run_attack(
    name: str,
    *,
    steps: int = 3,
    peers: int = 8,
    members: frozenset[int] = frozenset({1, 4, 6}),
    seed: int = 0,
    tau: float = 1.0,
    start: int = 0,
    every: int = 1,
    **options: Any,
) -> Run:
    config = ProtocolConfig(peers=peers, byzantine=len(members), validators=1, tau=tau, run_id=f"attacks {name} {seed}")
    collusion = Collusion(members, peers, seed)
    if name == "delayed_gradient":
        options = {"delay": 2, **options}
    if name in ("alie_search", "ipm_search"):
        options = {"trials": 3, **options}
    if name == "colluding_aggregate":
        options = {"tau": tau, **options}
    behaviours = {m: make_attack(name, collusion, start=start, every=every, **options) for m in members}
    task = Quadratic()
    driver = LocalDriver(config, task, behaviours=behaviours, collusion=collusion, mode="per_peer")
    params, results = torch.ones(task.d), []
    for _ in range(steps):
        results.append(driver.step(params))
        params = params - 0.1 * results[-1].gradient
    return Run(driver, collusion, results)


@pytest.fixture
def run() -> Callable[..., Run]:
    return run_attack


@pytest.fixture
def quadratic() -> Quadratic:
    return Quadratic()


@pytest.fixture
def collude() -> Callable[..., Collusion]:
    """`collude(honest [h, d])`: peers 0..h-1 are honest and were observed at step 5, then come `members` attackers."""

    def make(honest: torch.Tensor, members: int = 2) -> Collusion:
        h = len(honest)
        collusion = Collusion(frozenset(range(h, h + members)), h + members, seed=3)
        collusion.observe(5, dict(enumerate(honest)))
        return collusion

    return make


@pytest.fixture
def context() -> Callable[..., Context]:
    def make(peer: int = 7, step: int = 5, peers: int = 8, d: int = 4, **fields: Any) -> Context:
        record = StepRecord(step, tuple(range(peers)), {0: 1}, digest("coin", step - 1))
        record.split = Split(d, peers - 1 if d >= peers - 1 else 1)
        coins = [digest("coin", t) for t in range(-1, step)]
        return Context(step, peer, "test", coins, record.active, record.assignments, record=record, **fields)

    return make


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`gradient_attack` and `protocol_attack` are the registry's names: a new attack is tested without a word here."""
    for level in ("gradient", "protocol"):
        if f"{level}_attack" in metafunc.fixturenames:
            names = [name for name, attack in ATTACKS.items() if attack.level == level]
            metafunc.parametrize(f"{level}_attack", names)
