"""Mimic: all attackers copy the honest peer whose data differ most from the others'."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from btard.attacks.base import Attack, option
from btard.attacks.cohort import copied
from btard.attacks.statistics import honest_mean
from btard.protocol.behaviour import View


@dataclass(kw_only=True, eq=False)
class Mimic(Attack):
    """Copies the honest peer that stands out most along the direction in which honest gradients differ most.

    Formula: g_v; v maximises |sum_s <z_s, g_v^s>| over the first `warmup` steps s, then it stays. z is the top
    eigenvector of sum_s sum_i (g_i^s - mu_s)(g_i^s - mu_s)^T by Oja's rule: in the n-th of these steps mu is the mean
    of all honest gradients so far, and z <- ((n - 1) z + u) / n of length 1, u the unit vector of
    sum_i (g_i - mu) <g_i - mu, z>

    Source: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022 (the
    mimic attack).

    The direction follows their published code. The score is our reading of the paper: their code takes the projection
    of the last step alone.

    In the warm-up it copies the peer that leads so far. Where v does not work in a step, the next honest worker takes
    its place. Theirs is made for peers with different data; with data that are dealt out at random nobody stands out.
    """

    name = "mimic"
    requires_cohort = True
    warmup: int = option(20, "steps, from the attack's start on, in which the victim is chosen", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._place = f"mimic {self.start} {self.every} {self.warmup} "
        self.collusion.watch(self._place, self._watch)

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        if self._place + "scores" not in self.collusion.memory:
            self._learn()
        return copied(self.collusion, int(self.collusion.memory[self._place + "scores"].abs().argmax()))

    def _watch(self) -> None:
        """Learn of the step that was observed, if it is one of the warm-up."""
        steps = int(self.collusion.memory.get(self._place + "steps", torch.zeros(1)))
        if steps < self.warmup and self.active(self.collusion.step) and self.collusion.honest_peers:
            self._learn()

    def _learn(self) -> None:
        """Take the honest gradients of the present step into the memory."""
        memory, place = self.collusion.memory, self._place
        steps = int(memory.get(place + "steps", torch.zeros(1)))
        scores = memory.get(place + "scores", torch.zeros(0, dtype=torch.float64)).cpu()
        mean, z = self._look(steps, memory.get(place + "mean"), memory.get(place + "direction"))
        known = self.collusion.honest_peers
        scores = torch.nn.functional.pad(scores, (0, max(0, known[-1] + 1 - len(scores))))
        for peer, row in zip(known, self.collusion.rows, strict=True):
            scores[peer] += float(torch.dot(row, z))
        new = {"steps": torch.tensor([steps + 1]), "scores": scores, "mean": mean, "direction": z}
        memory.update({place + name: tensor for name, tensor in new.items()})

    def _look(self, steps: int, mean: torch.Tensor | None, z: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of all steps so far and the direction z, both [d], with the present step."""
        present, rows = honest_mean(self.collusion), self.collusion.rows
        if mean is None or z is None:
            normal = self.collusion.stream("mimic").standard_normal(len(present), dtype=np.float32)
            mean, z = present.clone(), torch.from_numpy(normal).to(present)
        else:
            mean = torch.lerp(mean.to(present.device), present, 1 / (1 + steps))
            z = z.to(present.device)
        along = torch.zeros_like(z)
        for row in rows:
            y = row - mean
            along.add_(y * torch.dot(y, z))
        tiny = torch.finfo(z.dtype).tiny
        unit = along / torch.linalg.vector_norm(along).clamp(min=tiny)
        if not bool(unit.any()):  # nobody differs from anybody
            return mean, z / torch.linalg.vector_norm(z).clamp(min=tiny)
        mixed = torch.lerp(z, unit, 1 / (1 + steps))
        return mean, mixed / torch.linalg.vector_norm(mixed).clamp(min=tiny)
