"""Attackers that know the rule: they try factors of ALIE and IPM on it and send the most harmful result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from btard.attacks.base import Attack, option
from btard.attacks.statistics import honest_deviation, honest_mean
from btard.protocol.aggregate import clip_parts
from btard.protocol.behaviour import View
from btard.protocol.collusion import Collusion


def best_factor(harm: Callable[[float], float], limit: float, trials: int) -> float:
    """The factor in (0, limit] with the largest `harm` of those tried, the smaller one of equals.

    The first half of the trials halves `limit` again and again; the others close in on the best from both sides, at
    the geometric means of it and its neighbours. Harm need not have one peak, since rules drop rows that are too far
    out: the first half finds the highest hill, the second one its top.
    """
    coarse = max(1, (trials + 1) // 2)
    tried = {limit * 0.5**i: harm(limit * 0.5**i) for i in range(coarse)}
    best = max(sorted(tried), key=tried.__getitem__)
    below, above, upwards = best / 2, min(2 * best, limit), True
    for _ in range(trials - coarse):
        if best == above:
            upwards = False
        between = math.sqrt(best * (above if upwards else below))
        tried[between] = harm(between)
        if tried[between] > tried[best]:
            below, above, best = (best, above, between) if upwards else (below, best, between)
        elif upwards:
            above = between
        else:
            below = between
        upwards = not upwards
    return best


class Rehearsal:
    """The rule of a step, tried on the honest gradients and on one vector of all attackers.

    A trusted server's rule is as it will be applied, its random numbers included. Where attackers see none but their
    own gradients, as in a swarm, these stand in for the honest ones.
    """

    def __init__(self, collusion: Collusion, ctx: View) -> None:
        self.rule = ctx.rule or (lambda x: clip_parts(x, ctx.tau))
        self.mean = honest_mean(collusion)
        known = dict(zip(collusion.honest_peers, collusion.rows, strict=True))
        liars = [p for p in ctx.active if p in collusion.members and p not in ctx.assignments]
        if collusion.members & known.keys():
            places: list[int | None] = [*known, *(None for _ in liars)]
        else:
            places = [None if p in liars else p for p in sorted({*known, *liars})]
        self.rows = torch.stack([self.mean if p is None else known[p] for p in places])
        self.theirs = torch.tensor([p is None for p in places], device=self.rows.device)

    def harm(self, vector: torch.Tensor) -> float:
        """How far from the honest mean the aggregate is if all attackers send `vector` [d]."""
        self.rows[self.theirs] = vector
        return float(torch.linalg.vector_norm(self.rule(self.rows) - self.mean))


@dataclass(kw_only=True, eq=False)
class SearchedLittleIsEnough(Attack):
    """ALIE with the z that does most harm under the rule in use, searched again in every step.

    Formula: mu - z * sigma; of `trials` values in (0, limit] z is that with the largest ||F(g, mu - z * sigma) - mu||,
    F the server's rule, or CenteredClip of each part under btard

    Source: Shejwalkar, Houmansadr, "Manipulating the Byzantine", NDSS 2021 (attackers that know the rule), and the line
    search of Allouah et al., "Fixing by Mixing", AISTATS 2023, on Baruch, Baruch, Goldberg, NeurIPS 2019.

    Theirs goes up from 0 and closes in where harm first falls; here `limit` is halved first, so that a rule which drops
    far rows does not end the search.
    """

    name = "alie_search"
    requires_cohort = True
    trials: int = option(16, "how many z are tried in a step", low=1)
    limit: float = option(16.0, "the largest z", low=0)

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return self.collusion.shared((self.name, self.trials, self.limit), lambda: self._worst(ctx))

    def vector(self, factor: float) -> torch.Tensor:
        """What all attackers would send [d]."""
        return torch.sub(honest_mean(self.collusion), honest_deviation(self.collusion), alpha=factor)

    def _worst(self, ctx: View) -> torch.Tensor:
        rehearsal = Rehearsal(self.collusion, ctx)
        return self.vector(best_factor(lambda z: rehearsal.harm(self.vector(z)), self.limit, self.trials))


@dataclass(kw_only=True, eq=False)
class SearchedInnerProduct(SearchedLittleIsEnough):
    """IPM with the epsilon that does most harm under the rule in use, searched again in every step.

    Formula: -epsilon * mu; of `trials` values in (0, limit] epsilon is that with the largest
    ||F(g, -epsilon * mu) - mu||, F the server's rule, or CenteredClip of each part under btard

    Source: the line search of Allouah et al., "Fixing by Mixing", AISTATS 2023, on Xie, Koyejo, Gupta, "Fall of
    Empires", UAI 2020. It is that of alie_search.
    """

    name = "ipm_search"
    limit: float = option(16.0, "the largest epsilon", low=0)

    def vector(self, factor: float) -> torch.Tensor:
        return honest_mean(self.collusion) * -factor
