"""Attacks of omniscient colluders: all of them send one vector made of the honest gradients of the step.

Letters: h honest gradients g_i, mu their mean, sigma their coordinate-wise standard deviation, n peers, b Byzantine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch

from btard.attacks.base import Attack, option
from btard.attacks.statistics import Spread, honest_deviation, honest_mean, spread_of
from btard.protocol.behaviour import View
from btard.protocol.collusion import Collusion

PERTURBATIONS = ("std", "unit", "sign")


@dataclass(kw_only=True, eq=False)
class InnerProduct(Attack):
    """IPM, inner product manipulation: pulls the aggregate until it no longer points where the honest mean does.

    Formula: -epsilon * mu

    Source: Xie, Koyejo, Gupta, "Fall of Empires", UAI 2020; epsilon 0.1 and 0.6 in the BTARD paper.
    """

    name = "ipm"
    requires_cohort = True
    epsilon: float = option(0.6, "length in units of the honest mean", low=0)

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return self.collusion.shared(("ipm", self.epsilon), lambda: honest_mean(self.collusion) * -self.epsilon)


def alie_z(n: int, b: int) -> float:
    """z_max of ALIE: the standard normal quantile of (n - b - s) / (n - b), s = floor(n / 2 + 1) - b.

    s honest peers have to be farther from the mean than the attackers for these to pass for the majority. Negative
    with few attackers. Errors: ValueError where s leaves no quantile, that is with a Byzantine majority.
    """
    s = math.floor(n / 2 + 1) - b
    if not 0 < s < n - b:
        raise ValueError(f"attack alie: no z for {b} attackers among {n} peers, the formula needs b < n/2 + 1; give z")
    return NormalDist().inv_cdf((n - b - s) / (n - b))


@dataclass(kw_only=True, eq=False)
class LittleIsEnough(Attack):
    """ALIE: shifts every coordinate by a little, so that honest outliers look worse than the attackers.

    Formula: mu - z * sigma; by default z is the normal quantile of (n - b - s) / (n - b), s = floor(n/2 + 1) - b

    Source: Baruch, Baruch, Goldberg, "A Little Is Enough", NeurIPS 2019, algorithm 3.

    sigma is the population standard deviation (divided by h): the attackers know all honest gradients, so there is
    nothing to estimate. n and b are those at the start of the run; bans do not change z.
    """

    name = "alie"
    requires_cohort = True
    z: float | None = option(None, "standard deviations; none: from n and b")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.z is None:
            self._z = alie_z(self.collusion.peers, len(self.collusion.members))
        else:
            self._z = float(self.z)

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        def make() -> torch.Tensor:
            return torch.sub(honest_mean(self.collusion), honest_deviation(self.collusion), alpha=self._z)

        return self.collusion.shared(("alie", self._z), make)


def copied(collusion: Collusion, victim: int) -> torch.Tensor:
    """The gradient [d] of the honest peer `victim`, or of the next honest worker after it; not copied, only to read."""
    workers, rows = collusion.honest_peers, collusion.rows
    return rows[next((i for i, peer in enumerate(workers) if peer >= victim), 0)]


@dataclass(kw_only=True, eq=False)
class Copy(Attack):
    """All attackers send the gradient of one honest peer as their own.

    Formula: g_v; v is the victim if it works in this step, else the next honest worker after it

    Source: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022
    (the mimic attack with a victim that it is told; mimic chooses it as theirs does).
    """

    name = "copy"
    requires_cohort = True
    victim: int = option(0, "whose gradient is copied", low=0)

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return copied(self.collusion, self.victim)


def perturbation(kind: str, mean: torch.Tensor, deviation: torch.Tensor | None) -> torch.Tensor:
    """p [d] of Min-Max and Min-Sum: "unit" -mu/||mu||, "sign" -sign(mu), "std" -sigma. Zero where mu is zero."""
    if kind == "unit":
        norm = torch.linalg.vector_norm(mean)
        return mean / -norm.clamp(min=torch.finfo(mean.dtype).tiny)
    if kind == "sign":
        return mean.sign().neg_()
    if deviation is None:
        raise ValueError("the perturbation std needs the standard deviation")
    return -deviation


def largest_root(a: float, b: float, c: float) -> float:
    """The largest gamma >= 0 with a gamma^2 - 2 b gamma - c <= 0, for c >= 0; 0 if a is 0 (nothing to scale)."""
    if a <= 0:
        return 0.0
    root = math.sqrt(b * b + a * max(c, 0.0))
    # Where b < 0 the textbook form would subtract nearly equal numbers.
    if b >= 0:
        return (b + root) / a
    return max(c, 0.0) / (root - b)


def min_max_gamma(spread: Spread) -> float:
    """The largest gamma with max_i ||mu + gamma p - g_i|| <= max_ij ||g_i - g_j||: closed form, one root per i."""
    limit = float(spread.between.max())
    pairs = zip(spread.along.tolist(), spread.to_mean.tolist(), strict=True)
    return min(largest_root(spread.square, along, limit - square) for along, square in pairs)


def min_sum_gamma(spread: Spread) -> float:
    """The largest gamma with sum_i ||mu + gamma p - g_i||^2 <= max_i sum_j ||g_i - g_j||^2: closed form."""
    limit, h = float(spread.between.sum(dim=1).max()), len(spread.along)
    return largest_root(h * spread.square, float(spread.along.sum()), limit - float(spread.to_mean.sum()))


@dataclass(kw_only=True, eq=False)
class MinMax(Attack):
    """Goes as far from the honest mean as possible, but no farther from any peer than two honest peers can be apart.

    Formula: mu + gamma * p; p = -sigma, -mu/||mu|| or -sign(mu); gamma is the largest with
    max_i ||mu + gamma p - g_i|| <= max_ij ||g_i - g_j||

    Source: Shejwalkar, Houmansadr, "Manipulating the Byzantine", NDSS 2021 (the attacks that know no aggregation rule).

    Their gamma is bisected with passes over the gradients; here it is the root of a quadratic in scalars.
    """

    name = "min_max"
    requires_cohort = True
    perturbation: str = option("std", "direction p: -sigma, -mu/||mu|| or -sign(mu)", choices=PERTURBATIONS)

    def gamma(self, spread: Spread) -> float:
        return min_max_gamma(spread)

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        def make() -> torch.Tensor:
            mean = honest_mean(self.collusion)
            deviation = honest_deviation(self.collusion) if self.perturbation == "std" else None
            p = perturbation(self.perturbation, mean, deviation)
            return torch.add(mean, p, alpha=self.gamma(spread_of(self.collusion.rows, mean, p)))

        return self.collusion.shared((self.name, self.perturbation), make)


@dataclass(kw_only=True, eq=False)
class MinSum(MinMax):
    """Like min_max, with the sum of squared distances to the honest gradients as its limit.

    Formula: mu + gamma * p; p as in min_max; gamma is the largest with
    sum_i ||mu + gamma p - g_i||^2 <= max_i sum_j ||g_i - g_j||^2, which is max_i ||g_i - mu|| / ||p||

    Source: Shejwalkar, Houmansadr, "Manipulating the Byzantine", NDSS 2021 (the attacks that know no aggregation rule).
    """

    name = "min_sum"

    def gamma(self, spread: Spread) -> float:
        return min_sum_gamma(spread)
