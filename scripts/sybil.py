"""A Sybil that serves its probation honestly, attacks as a member, is banned, and comes back under a new key."""

from __future__ import annotations

import torch

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, View
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity
from btard.task import QuadraticTask

D = 40


class WaitAndAttack(Behaviour):
    """Is honest on probation; as a member it flips signs whenever it works."""

    byzantine = True

    def __init__(self) -> None:
        self.served = self.attacked = 0

    def active(self, step: int) -> bool:
        return True

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        if ctx.peer not in ctx.active:
            self.served += 1
            return gradient
        self.attacked += 1
        return -1000.0 * gradient


def sybil_price(members: int, probation: int, lives: int, seed: int) -> tuple[int, int]:
    """(honest gradients, attacking steps) of one Sybil among `members` honest peers over this many lives."""
    config = ProtocolConfig(peers=members, byzantine=1, probation=probation, run_id=f"sybil {seed}")
    driver = LocalDriver(config, QuadraticTask(D))
    params = torch.ones(D)
    honest = attacks = 0
    for life in range(lives):
        behaviour = WaitAndAttack()
        newcomer = driver.join(Identity.from_seed("sybil", seed, life), behaviour)
        removed: dict[int, str] = {}
        while newcomer.peer not in removed:
            result = driver.step(params)
            params = params - 0.1 * result.gradient
            removed = {peer: entry.kind for entry in result.removed for peer in entry.peers}
        assert removed == {newcomer.peer: "wrong_gradient"}, f"seed {seed}, life {life}: {removed}"
        honest, attacks = honest + behaviour.served, attacks + behaviour.attacked
    return honest, attacks
