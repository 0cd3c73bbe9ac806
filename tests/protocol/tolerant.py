"""What the tests of tolerant validation share: peers with numerics of their own, a run of them, and an attacker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.hashing import stream
from btard.protocol.messages import Claim, Report
from btard.protocol.signed import Packet
from btard.task import QuadraticTask
from tests.protocol.cohort import Run

TOL = 0.02


class OwnNumerics(QuadraticTask):
    """The quadratic as one peer computes it: off by `size` of the gradient's norm, in a direction of this peer."""

    def __init__(self, d: int, peer: int, size: float) -> None:
        super().__init__(d)
        self.peer, self.size = peer, size

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **options: Any) -> None:
        super().gradients(params, requests, out, **options)
        for request, row in zip(requests, out, strict=True):
            direction = torch.from_numpy(
                stream("numerics", self.peer, request.seed).standard_normal(self.d, dtype=np.float32)
            )
            row.add_(direction, alpha=self.size * float(row.norm() / direction.norm()))


def run_mixed(
    behaviours: Mapping[int, Behaviour] | None = None,
    *,
    peers: int = 7,
    steps: int = 8,
    d: int = 61,
    seed: int = 0,
    sizes: Mapping[int, float] | None = None,
    collusion: Collusion | None = None,
    until_banned: frozenset[int] = frozenset(),
    **options: Any,
) -> Run:
    """Train with a task per peer; `sizes`: how far off each computes, by default half the tolerance."""
    behaviours = behaviours or {}
    byzantine = sum(behaviour.byzantine for behaviour in behaviours.values())
    chosen = {"peers": peers, "byzantine": byzantine, "run_id": f"tolerant {seed}", "relays": 0}
    chosen |= {"validation": "tolerant", "gradient_tol": TOL, **options}
    sizes = sizes or dict.fromkeys(range(peers), 0.5 * TOL)
    driver = LocalDriver(
        ProtocolConfig(**chosen),
        QuadraticTask(d),
        behaviours=behaviours,
        collusion=collusion,
        tasks={peer: OwnNumerics(d, peer, size) for peer, size in sizes.items()},
    )
    params, results = torch.ones(d), []
    for _ in range(steps):
        results.append(driver.step(params))  # raises if honest peers disagree
        params = params - 0.1 * results[-1].gradient
        if until_banned and not until_banned & set(results[-1].active):
            break
    return Run(driver, params, results)


class Byzantine(Behaviour):
    """Deviates by the functions it is given: `gradient`, the packets of a phase, its claims, its evidence."""

    byzantine = True

    def __init__(
        self,
        gradient: Callable[[Context, torch.Tensor], torch.Tensor] | None = None,
        packets: Callable[[str, int, Sequence[Packet]], Sequence[Packet]] | None = None,
        claims: Callable[[Context, tuple[Claim, ...]], tuple[Claim, ...]] | None = None,
        report: Callable[[Context, Report], Report] | None = None,
    ) -> None:
        self._gradient, self._packets, self._claims, self._report = gradient, packets, claims, report

    def active(self, step: int) -> bool:
        return True

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return self._gradient(ctx, gradient) if self._gradient else gradient

    def report(self, ctx: Context, report: Report) -> Report:
        return self._report(ctx, report) if self._report else report

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return self._claims(ctx, claims) if self._claims else claims

    def dispatch(
        self, ctx: Context, phase: str, packets: Mapping[int, Sequence[Packet]]
    ) -> Mapping[int, Sequence[Packet]]:
        if self._packets is None:
            return packets
        changed = {recipient: self._packets(phase, recipient, items) for recipient, items in packets.items()}
        return {recipient: items for recipient, items in changed.items() if items}


def backwards(ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
    return -gradient


def from_validators(phase: str, recipient: int, packets: Sequence[Packet]) -> Sequence[Packet]:
    """Withholds from the validator, and shows everything in the trial."""
    return () if phase == "disclose" else packets


TRIAL = ("evidence", "pass")
"""The phases of a trial in which packets are shown, and shown again to who lacks them."""


def from_everybody(phase: str, recipient: int, packets: Sequence[Packet]) -> Sequence[Packet]:
    return () if phase == "disclose" or phase.startswith(TRIAL) else packets


def from_half_of_the_judges(phase: str, recipient: int, packets: Sequence[Packet]) -> Sequence[Packet]:
    return () if phase == "disclose" or (phase.startswith(TRIAL) and recipient % 2) else packets


def claim_about_target(
    kind: str, among: frozenset[int] = frozenset(range(9))
) -> Callable[[Context, tuple[Claim, ...]], tuple[Claim, ...]]:
    def claims(ctx: Context, honest: tuple[Claim, ...]) -> tuple[Claim, ...]:
        target = ctx.record.assignments.get(ctx.peer)
        return (Claim(ctx.step - 1, target, kind),) if target in among else ()

    return claims


def at_distance(multiple: float) -> Callable[[Context, torch.Tensor], torch.Tensor]:
    """A gradient `multiple` tolerances away from the peer's own, in a direction of its own."""

    def deviate(ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        u = torch.from_numpy(stream("edge", ctx.peer, ctx.step).standard_normal(len(gradient), dtype=np.float32))
        return gradient + u * (multiple * TOL * gradient.norm() / u.norm())

    return deviate
