"""ROP, the attack that was designed against CenteredClip."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from btard.attacks.base import Attack, option
from btard.attacks.statistics import honest_mean, spread_of
from btard.protocol.behaviour import View
from btard.protocol.record import StepRecord


def rotated_perturbation(reference: torch.Tensor, angle: float) -> torch.Tensor:
    """The unit vector [d] at `angle` degrees from `reference`, in the plane that it spans with (1, ..., 1).

    Where `reference` is zero or parallel to (1, ..., 1) there is no such plane: then it is (1, ..., 1) / sqrt(d).
    Two dot products and two combinations; no wait for the host.
    """
    ones = torch.ones_like(reference)
    tiny = torch.finfo(reference.dtype).tiny
    unit = reference / torch.linalg.vector_norm(reference).clamp(min=tiny)
    normal = ones - unit * torch.dot(unit, ones)
    length = torch.linalg.vector_norm(normal)
    radians = math.radians(angle)
    rotated = normal * (math.sin(radians) / length.clamp(min=tiny)) + unit * math.cos(radians)
    # Rounding leaves about sqrt(d) units in the last place of a normal that should be zero.
    degenerate = length <= 1e-5 * math.sqrt(reference.numel())
    return torch.where(degenerate | ~unit.any(), ones / math.sqrt(reference.numel()), rotated)


def previous_aggregate(last: StepRecord | None, fallback: torch.Tensor) -> torch.Tensor:
    """concat_j a[j] of the step before [d]; `fallback` if a part, or the whole step, is not known."""
    if last is None or last.split is None:
        return fallback
    known = {part: value for part, value in last.aggregates.items() if part not in last.skipped}
    out = fallback.clone()
    for part, value in known.items():
        last.split.view(out, part).copy_(value)
    return out


@dataclass(kw_only=True, eq=False)
class RelocatedOrthogonal(Attack):
    """ROP, relocated orthogonal perturbation: hides within the clipping radius and couples the steps.

    Formula: l + z * q, with l = relocation * r + (1 - relocation) * mu and q the unit vector at `angle` degrees from
    the reference f = lam * r + (1 - lam) * mu in the plane of f and (1, ..., 1): q = sin(angle) * o/||o|| +
    cos(angle) * f/||f||, o = (1, ..., 1) - f <f, (1, ..., 1)>/||f||^2; r is the aggregate of the step before

    Source: Ozfatura, Ozfatura, Kupcu, Gunduz, "Byzantines Can Also Learn From History: Fall of Centered Clipping in
    Federated Learning", 2022 (arXiv 2208.09894).

    Departures. There, r is the momentum that the server broadcasts and clips around, workers send momenta, and the
    first step has r = 0. Here nobody broadcasts a reference: r is the agreed aggregate of the step before (mu where
    it is unknown), peers send gradients, so r is noisier, and CenteredClip is solved to its fixed point, which no
    reference can move. There, z is one number for the whole vector; here each of the k parts is clipped with tau, so
    by default z = scale * tau * sqrt(k), which puts a part of average share on the clipping radius. With tau = inf
    (or unknown) z = scale * the root mean square of ||g_i - mu||.
    """

    name = "rop"
    requires_cohort = True
    lam: float = option(0.9, "share of r in the reference f", low=0, high=1)
    relocation: float = option(1.0, "share of r in the place l that is perturbed", low=0, high=1)
    angle: float = option(90.0, "degrees between perturbation and reference; 180 points against it", low=0, high=180)
    scale: float = option(1.0, "factor of the default length z", low=0)
    z: float | None = option(None, "length of the perturbation; none: from tau", low=0)

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        key = ("rop", self.lam, self.relocation, self.angle, self.scale, self.z)
        return self.collusion.shared(key, lambda: self._vector(ctx))

    def _vector(self, ctx: View) -> torch.Tensor:
        mean = honest_mean(self.collusion)
        previous = previous_aggregate(ctx.last, mean)
        q = rotated_perturbation(torch.lerp(mean, previous, self.lam), self.angle)
        return torch.lerp(mean, previous, self.relocation).add_(q, alpha=self._length(ctx, mean))

    def _length(self, ctx: View, mean: torch.Tensor) -> float:
        if self.z is not None:
            return float(self.z)
        if math.isfinite(ctx.tau):
            workers = sum(peer not in ctx.assignments for peer in ctx.active)
            return self.scale * ctx.tau * math.sqrt(workers)
        return self.scale * math.sqrt(float(spread_of(self.collusion.rows, mean, mean).to_mean.mean()))
