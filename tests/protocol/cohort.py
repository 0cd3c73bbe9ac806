"""A runner of small cohorts shared by the protocol's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from btard.audit.recorder import Recorder
from btard.drivers.links import Links
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.task import QuadraticTask

FIXED: dict[str, Any] = {"tau": 1.0, "tau_start": 1.0}
"""The radius of cohorts whose ledgers are compared with recorded ones."""


class Run:
    """A finished run: parameters, the ledger's entries in order, and the driver for a closer look."""

    def __init__(self, driver: LocalDriver, params: torch.Tensor, results: list[StepResult]) -> None:
        self.driver, self.params, self.results = driver, params, results
        self.entries = [entry for result in results for entry in result.removed]
        self.removed = {peer: entry for entry in reversed(self.entries) for peer in entry.peers}


@torch.no_grad()  # nothing here is differentiated, and a tenth of the time goes into being ready for it
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
    links: Links | None = None,
    proofs: Path | None = None,
    commitments: Literal["hashed", "ideal"] = "hashed",
    **settings: object,
) -> Run:
    """Train the quadratic with `behaviours` plugged in, the rest honest: `steps` steps, or until those are banned.

    What an audit needs is written into the folder `proofs`.
    """
    behaviours = behaviours or {}
    byzantine = sum(behaviour.byzantine for behaviour in behaviours.values())
    config = ProtocolConfig(**{"peers": peers, "byzantine": byzantine, "run_id": f"test {seed}", **FIXED, **settings})  # type: ignore[arg-type]
    driver = LocalDriver(
        config,
        QuadraticTask(d),
        behaviours=behaviours,
        collusion=collusion,
        mode=mode,  # type: ignore[arg-type]
        links=links,
        recorder=None if proofs is None else Recorder(proofs, config),
        commitments=commitments,
    )
    params, results = torch.ones(d), []
    for _ in range(steps):
        results.append(driver.step(params))
        if results[-1].back_to is None:
            params = params - 0.1 * results[-1].gradient
        else:
            params = results[-1].state["parameters"].clone()
        if until_banned and not until_banned & set(results[-1].active):
            break
    return Run(driver, params, results)
