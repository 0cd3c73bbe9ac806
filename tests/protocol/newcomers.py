"""A cohort that strangers join, in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from btard.attacks import make_attack
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.drivers.newcomers import Newcomer
from btard.protocol.behaviour import HONEST, Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Purpose
from btard.protocol.identity import Identity
from btard.protocol.messages import Join, JoinRequest
from btard.protocol.peer import Outcome
from btard.protocol.signed import Signed
from btard.task import QuadraticTask

PEERS, D, T_JOIN = 5, 41, 4


class Cohort(LocalDriver):
    """A local driver under which every peer applies its own outcomes to its own parameters."""

    def __init__(self, config: ProtocolConfig, **options: Any) -> None:
        super().__init__(config, QuadraticTask(D), **options)
        self.params = torch.ones(D)
        self.replicas = {i: torch.ones(D) for i in self.peers}
        self.results: list[StepResult] = []

    def enter(self, identity: Identity, behaviour: Behaviour = HONEST, donor: int | None = None) -> Newcomer:
        """Join; the newcomer's replica starts from what it downloads."""

        def receive(tensors: Mapping[str, torch.Tensor]) -> None:
            assert newcomer.peer is not None
            self.replicas[newcomer.peer] = tensors["parameters"].clone()

        newcomer = self.join(identity, behaviour, donor=donor, receive=receive)
        return newcomer

    def advance(self, steps: int = 1) -> None:
        for _ in range(steps):
            result = self.step(self.params)
            self.params = self.params - 0.1 * result.gradient
            self.results.append(result)
            for peer in self.honest:
                assert torch.equal(self.replicas[peer.id], self.params), f"peer {peer.id} at step {result.step}"
            assert len({peer.ledger.head for peer in self.honest}) == 1

    def advance_until_removal(self, most: int) -> None:
        """Somebody is removed, and one more step; `most` steps if nobody is."""
        while not self.removed and self.peers[0].t < most:
            self.advance()
        self.advance()

    def _agreed(self, honest: Mapping[int, Outcome | None]) -> Outcome:
        for i, outcome in honest.items():
            if outcome is not None:
                self.replicas[i] = self.replicas[i] - 0.1 * outcome.gradient(torch.empty(D))
        return super()._agreed(honest)

    @property
    def removed(self) -> dict[int, str]:
        return {peer: entry.kind for result in self.results for entry in result.removed for peer in entry.peers}

    def computed(self, peer: int) -> int:
        """Gradients of its own batches that `peer` had to compute."""
        requests = self.task.requests  # type: ignore[attr-defined]
        return sum(request.peer == peer and request.purpose is Purpose.TRAIN for request in requests)


def cohort(behaviours: dict[int, Behaviour] | None = None, **settings: Any) -> Cohort:
    options = {name: settings.pop(name) for name in ("collusion", "links", "mode") if name in settings}
    byzantine = sum(behaviour.byzantine for behaviour in (behaviours or {}).values())
    config = ProtocolConfig(**{"peers": PEERS, "byzantine": byzantine, "probation": T_JOIN, **settings})
    return Cohort(config, behaviours=behaviours, **options)


def key(*fields: str | int) -> Identity:
    return Identity.from_seed("newcomer", *fields)


def sign_flip(peers: int = 32, start: int = 0, scale: float = 1000.0) -> Behaviour:
    return make_attack("sign_flip", Collusion(frozenset(range(peers)), peers), start=start, scale=scale)


class Sponsor(Behaviour):
    """Names requests of its own choosing."""

    byzantine = True

    def __init__(self, requests: Sequence[JoinRequest]) -> None:
        self.requests = tuple(requests)

    def active(self, step: int) -> bool:
        return True

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return (sign(Join(self.requests)), {}) if phase == "join" else (message, {})
