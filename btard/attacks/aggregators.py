"""Aggregators that announce something else than CenteredClip of the parts they were sent."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from btard.attacks.base import Attack, option
from btard.protocol.behaviour import Context
from btard.protocol.collusion import Collusion
from btard.protocol.commit import clip_gradient
from btard.protocol.messages import Report
from btard.protocol.report import directions, scalars


def shifted(
    collusion: Collusion, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor, scale: float
) -> torch.Tensor:
    """`value` [p] moved by scale times the median of ||x_i - value|| in a random direction, new for step and part.

    Where half of the parts are equal to `value` the norm of `value`, or else 1, is the unit instead.
    """
    typical = float(torch.linalg.vector_norm(x - value, dim=1).median())
    unit = typical or float(torch.linalg.vector_norm(value)) or 1.0
    normal = collusion.stream("shift", ctx.step, part).standard_normal(value.numel(), dtype=np.float32)
    direction = torch.from_numpy(normal).to(value)
    return torch.add(value, direction, alpha=scale * unit / float(torch.linalg.vector_norm(direction)))


@dataclass(kw_only=True, eq=False)
class WrongAggregate(Attack):
    """Announces a shifted aggregate for every part that it owns, alone: nobody covers for it.

    Formula: a[j] + scale * median_i ||g_i[j] - a[j]|| * u, with u a random unit vector

    Source: Gorbunov et al., ICML 2022, the aggregation attacks that verification 2 is there for.
    """

    name = "wrong_aggregate"
    level = "protocol"
    scale: float = option(1.0, "shift in units of the typical distance to the aggregate", low=0)

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return shifted(self.collusion, ctx, part, value, x, self.scale)


@dataclass(kw_only=True, eq=False)
class ColludingAggregate(Attack):
    """Like wrong_aggregate, and all colluders report an s that makes the sum of verification 2 vanish.

    Formula: s_c[j] = -(1/c) * sum of s_i[j] over the others that went in, for each of the c colluders that went in

    Source: Gorbunov et al., ICML 2022, the case that verification 3 and the validators are there for.

    Two hooks belong to it, the aggregate and the report. Verification 3 looks for a distance above `delta_max`, by
    default 10 times the typical one: with scale 2 the shift stays within, with scale 100 it is far beyond.
    """

    name = "colluding_aggregate"
    level = "protocol"
    requires_cohort = True
    scale: float = option(2.0, "shift in units of the typical distance to the aggregate", low=0)
    tau: float | None = option(None, "clipping radius; none: that of the run", low=0)

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return shifted(self.collusion, ctx, part, value, x, self.scale)

    def report(self, ctx: Context, report: Report) -> Report:
        products, record = list(report.products), ctx.record
        for part, entry in record.announced.items():
            cooked = record.owner(part) in self.collusion.members and part in record.aggregates
            if cooked and ctx.peer in entry.senders:
                products[part] = self.collusion.shared(
                    ("cooked s", ctx.step, part), partial(self._share, ctx, part, entry.senders)
                )
        return replace(report, products=tuple(products))

    def _share(self, ctx: Context, part: int, senders: tuple[int, ...]) -> tuple[float, ...]:
        """What each colluder has to say, per direction z, so that everybody's s sum up to zero."""
        count = ctx.config.directions if ctx.config is not None else 1
        value = ctx.record.aggregates[part]
        z = directions(ctx.record.coin, part, value.numel(), count, str(value.device))
        committed = self.collusion.shared(("committed", ctx.step), partial(self._committed, ctx))
        honest = [
            scalars(ctx.record.cut.view(committed[sender], part), value, z, self._tau(ctx))[1]
            for sender in senders
            if sender not in self.collusion.members
        ]
        colluders = len(senders) - len(honest)
        return tuple(-math.fsum(row[q] for row in honest) / colluders for q in range(count))

    def _committed(self, ctx: Context) -> dict[int, torch.Tensor]:
        """What the honest peers committed to in this step, [d] each."""
        clip = ctx.config.clip_lambda if ctx.config is not None else None
        pairs = zip(self.collusion.honest_peers, self.collusion.rows, strict=True)
        return {peer: clip_gradient(gradient, clip) for peer, gradient in pairs}

    def _tau(self, ctx: Context) -> float:
        if self.tau is not None:
            return float(self.tau)
        if ctx.config is None:
            raise ValueError(f"attack {self.name}: the run's clipping radius is not known here, give tau")
        return ctx.config.tau
