"""A small model with all that may differ between peers: dropout, BatchNorm, a frozen layer, a schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from btard import Attack, Run, TorchTask, option
from btard.protocol.behaviour import View
from btard.protocol.ledger import Ledger
from btard.swarm.config import SwarmConfig
from btard.training.randomness import seeded

PEERS, BYZANTINE, STEPS, SEED, RUN_ID = 4, 1, 12, 1, "three places"
OWN = "tests.training.model:Backwards"
ATTACK = {"attack": OWN, "attack_options": {"start": 3, "scale": 100.0}}
TAU = 100.0


EQUAL = {"seed": SEED, "run_id": RUN_ID, "byzantine": BYZANTINE, "tau": TAU, **ATTACK}
TWO = {"byzantine": 0, "attack": None, "attack_options": None, "steps": 3}
"""What is different among two peers."""


@dataclass(kw_only=True, eq=False)
class Backwards(Attack):
    """An attack of one's own, by module:Class and with an option, wherever peers train."""

    name = "backwards"
    scale: float = option(1.0, "amplification", low=0)

    def gradient(self, ctx: View, gradient: Tensor) -> Tensor:
        return -self.scale * gradient


def dataset(samples: int = 96) -> TensorDataset:
    """Ten numbers, and whether the first three are more than the next three."""
    x = torch.randn(samples, 10, generator=torch.Generator().manual_seed(7))
    return TensorDataset(x, (x[:, :3].sum(1) > x[:, 3:6].sum(1)).long())


def loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy."""
    x, labels = batch
    return F.cross_entropy(model(x), labels)


def network() -> nn.Sequential:
    """Two layers with dropout and batch normalisation; the first layer is frozen."""
    with seeded(torch.device("cpu"), "network"):  # ranks in threads have one generator, and take turns
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    return model


def flipped(batch: Any) -> Any:
    """The other label."""
    x, labels = batch
    return x, 1 - labels


def task(**changes: Any) -> TorchTask:
    """The loss of `network` on `dataset`."""
    return TorchTask(network(), loss, dataset(), batch_size=8, made_by=task, **{"poison": flipped, **changes})


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer."""
    return torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.01)


def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Its schedule."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


WITH: dict[str, Any] = {"optimizer": adam, "scheduler": cosine, "steps": STEPS}


def head(run: Run) -> str:
    """The head of the run's ledger."""
    chain = Ledger()
    for entry in run.ledger:
        chain.append(entry)
    return chain.head.hex()


def make(config: SwarmConfig) -> Any:
    """The same for `python -m btard.swarm --task tests.training.model:make`."""
    return task(), adam, cosine
