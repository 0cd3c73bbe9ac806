"""LAMB over the vector of parameters, with a state that can be saved, given away and compared as vectors."""

from __future__ import annotations

import math

import torch
from pytorch_optimizer import Lamb
from torch import nn

from albert.config import OptimizerConfig
from albert.model import decays
from btard.task import PARAMETERS
from btard.training.vector import bind, flatten, views

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """Moves the parameters of `model`, which become views of `params` [d].

    The update is that of LAMB (You et al., ICLR 2020) in float32 on the CPU or a GPU; weight decay is part of what the
    trust ratio scales. A tensor's norm counts for the trust ratio up to `clamp`. With `bias_correction` the learning
    rate of step t is multiplied by sqrt(1 - beta2^(t+1)) / (1 - beta1^(t+1)), as in the authors' code; version 3 of the
    LAMB paper has none.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        self.config = config
        self.params = flatten(model).detach()
        bind(model, self.params)
        self.moments = {name: torch.zeros_like(self.params) for name in MOMENTS}
        self._gradient = torch.zeros_like(self.params)
        named = list(model.named_parameters())
        groups = [
            {"params": [p for name, p in named if decays(name)], "weight_decay": config.weight_decay},
            {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
        ]
        # adam_debias: the library's word for leaving the step size alone; else it would depend on how many steps this
        # process has done, and a peer that comes back would compute something else.
        self._lamb = Lamb(
            groups,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decouple=False,
            adam_debias=True,
        )
        self._lamb.clamp = config.clamp
        pieces = {name: list(views(model, vector)) for name, vector in self.moments.items()}
        gradients = views(model, self._gradient)
        for index, ((_, parameter), gradient) in enumerate(zip(named, gradients, strict=True)):
            self._lamb.state[parameter] = {name: pieces[name][index] for name in MOMENTS}
            parameter.grad = gradient

    def lr(self, step: int) -> float:
        """The learning rate of `step`: linear up to `warmup_steps`, then linear down to 0 at `schedule_steps`."""
        config = self.config
        if step < config.warmup_steps:
            return config.lr * (step + 1) / config.warmup_steps
        return config.lr * max(0.0, (config.schedule_steps - step) / (config.schedule_steps - config.warmup_steps))

    def correction(self, step: int) -> float:
        """The bias correction of `step`: of the run's steps, not of those that this process has done."""
        config, steps = self.config, step + 1
        if not config.bias_correction:
            return 1.0
        return math.sqrt(1 - config.beta2**steps) / (1 - config.beta1**steps)

    def apply(self, gradient: torch.Tensor, step: int) -> None:
        """x^{t+1} from the agreed `gradient` [d] of `step`."""
        self._gradient.copy_(gradient)
        for group in self._lamb.param_groups:
            group["lr"] = self.lr(step) * self.correction(step)
        self._lamb.step()

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters and moments, [d] each, not copied."""
        return {PARAMETERS: self.params, **self.moments}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore what `state` returned."""
        for name, vector in self.state().items():
            vector.copy_(tensors[name])
