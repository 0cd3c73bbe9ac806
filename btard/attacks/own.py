"""Attacks on the peer's own gradient, or on the batch it is computed from. None of them uses other peers' gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from btard.attacks.base import Attack, option
from btard.protocol.behaviour import View
from btard.protocol.effects import Compute
from btard.protocol.hashing import batch_seed


@dataclass(kw_only=True, eq=False)
class SignFlip(Attack):
    """Sends its own gradient, reversed and amplified.

    Formula: -scale * g_i

    Source: Gorbunov et al., ICML 2022, section 4.1, with scale 1000.
    """

    name = "sign_flip"
    scale: float = option(1000.0, "amplification", low=0)

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * -self.scale


PER = ("vector", "tensor")


@dataclass(kw_only=True, eq=False)
class RandomDirection(Attack):
    """All attackers push into one random direction that stays the same for the whole run.

    Formula: scale * ||g_i|| * u, with u uniform on the unit sphere, drawn once

    Source: Gorbunov et al., ICML 2022, section 4.1, with scale 1000. With `per` = tensor as their published code: a
    direction for each tensor of the model, as long as that tensor's gradient times `scale`.
    """

    name = "random_direction"
    scale: float = option(1000.0, "length in units of the own gradient's norm", low=0)
    per: str = option("vector", "one direction for the whole gradient, or one for each tensor", choices=PER)

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        size = gradient.numel()
        sizes = self._sizes(size)

        def draw() -> torch.Tensor:
            # On the CPU, so that the direction does not depend on the device.
            normal = self.collusion.stream("direction").standard_normal(size, dtype=np.float32)
            pieces = np.split(normal, np.cumsum(sizes)[:-1])
            units = [piece / np.linalg.norm(piece.astype(np.float64)) for piece in pieces]
            return torch.from_numpy(np.concatenate(units)).to(gradient)

        direction = self.collusion.constant(("direction", self.per, size, str(gradient.device)), draw)
        pairs = zip(direction.split(sizes), gradient.split(sizes), strict=True)
        return torch.cat([unit * (self.scale * torch.linalg.vector_norm(own)) for unit, own in pairs])

    def _sizes(self, size: int) -> list[int]:
        """The number of entries in each piece into which the gradient is cut."""
        if self.per == "vector":
            return [size]
        if sum(self.collusion.tensors) != size:
            raise RuntimeError("random_direction per tensor: this driver does not say which tensors a gradient has")
        return list(self.collusion.tensors)


@dataclass(kw_only=True, eq=False)
class LabelFlip(Attack):
    """Trains on its public batch with wrong labels.

    Formula: gradient of the same batch with every label l replaced by classes - 1 - l

    Source: Gorbunov et al., ICML 2022, section 4.1.
    """

    name = "label_flip"

    def request(self, ctx: View, request: Compute) -> Compute:
        return replace(request, flip_labels=True)


@dataclass(kw_only=True, eq=False)
class DelayedGradient(Attack):
    """Sends the gradient of an earlier step.

    Formula: g_i^(t - delay), recomputed from the parameters and the public seed of that step; g_i^0 before step delay

    Source: Gorbunov et al., ICML 2022, section 4.1, with delay 1000.

    The driver keeps the parameters of `delay` steps, as a file where there are many.
    """

    name = "delayed_gradient"
    delay: int = option(1000, "age of the gradient in steps", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lookback = self.delay

    def request(self, ctx: View, request: Compute) -> Compute:
        then = max(0, ctx.step - self.delay)
        return replace(request, step=then, seed=batch_seed(ctx.run_id, then, ctx.peer, ctx.coins[then]))


@dataclass(kw_only=True, eq=False)
class Noise(Attack):
    """Sends Gaussian noise, new for every attacker and step.

    Formula: e with mode replace, g_i + e with mode add; entries of e are N(0, (scale * ||g_i|| / sqrt(d))^2)

    Source: Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018 (the Gaussian attack, which replaces the
    gradient). Theirs has a fixed standard deviation; here the expected norm of e is about scale * ||g_i||, so that a
    scale means the same for every model. The default is the amplification of the BTARD paper's attacks.
    """

    name = "noise"
    scale: float = option(1000.0, "norm of the noise in units of the own gradient's norm", low=0)
    mode: str = option("replace", "whether the noise replaces the gradient or is added", choices=("replace", "add"))

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        d = gradient.numel()
        drawn = self.collusion.stream("noise", ctx.step, ctx.peer).standard_normal(d, dtype=np.float32)
        deviation = torch.linalg.vector_norm(gradient) * (self.scale / math.sqrt(d))
        noise = torch.from_numpy(drawn).to(gradient).mul_(deviation)
        return noise if self.mode == "replace" else noise.add_(gradient)


@dataclass(kw_only=True, eq=False)
class Zero(Attack):
    """Does no work: sends a zero gradient.

    Formula: 0

    Source: folklore; the free rider of the literature on federated learning.
    """

    name = "zero"

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(gradient)
