"""SGD with momentum and a cosine schedule, as any PyTorch program would make them for `btard.simulate`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from resnet.config import OptimizerConfig


def sgd(config: OptimizerConfig) -> Callable[[list[nn.Parameter]], torch.optim.Optimizer]:
    """Return what makes SGD of a list of parameters, with Nesterov's momentum if there is any."""
    return lambda parameters: torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        foreach=True,  # the same bits; a network of 62 tensors takes 1 ms instead of 4 on a CPU
    )


def cosine(steps: int) -> Callable[[torch.optim.Optimizer], LambdaLR]:
    """Return what makes the schedule of an optimizer: its learning rate falls to 0 over so many `steps`."""
    return lambda optimizer: LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))
