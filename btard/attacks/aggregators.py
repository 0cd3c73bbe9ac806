"""Aggregators that announce anything but CenteredClip of the parts that they received."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from msgspec.structs import replace

from btard.aggregation import residual_and_floor
from btard.attacks.base import Attack, option
from btard.protocol.behaviour import Context
from btard.protocol.collusion import Collusion
from btard.protocol.commit import clip_gradient
from btard.protocol.directions import directions
from btard.protocol.messages import Claim, Report
from btard.protocol.scalars import scalars
from btard.protocol.signed import Packet


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
    """Announces a value other than CenteredClip for every part that it owns, alone: nobody covers for it.

    Formula: shift: a[j] + scale * median_i ||g_i[j] - a[j]|| * u, with u a random unit vector; factor: scale * a[j];
    part: g_i[j] of one of the workers, drawn for step and part; edge: a shift, found by bisection, after which the
    relative residual of CenteredClip's equation is scale times what a judge tolerates

    Source: Gorbunov et al., ICML 2022, the aggregation attacks that verification 2 is there for; edge is ours.
    """

    name = "wrong_aggregate"
    level = "protocol"
    scale: float = option(1.0, "how far: see the formula", low=0)
    how: str = option("shift", "what is announced instead", choices=("shift", "factor", "part", "edge"))

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if self.how == "factor":
            return value * self.scale
        if self.how == "part":
            return x[int(self.collusion.stream("part", ctx.step, part).integers(len(x)))].clone()
        if self.how == "edge":
            return self._edge(ctx, part, value, x)
        return shifted(self.collusion, ctx, part, value, x, self.scale)

    def _edge(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The shifted value whose relative residual is `scale` times the tolerance; `value` if rounding exceeds it."""
        if ctx.config is None:
            raise ValueError(f"attack {self.name}: the run's tolerance is not known here, choose another how")
        wanted, tau = self.scale * ctx.config.residual_tol, ctx.record.tau
        low, high = -12.0, 2.0  # of the exponent: bisection over fourteen orders of magnitude
        for _ in range(50):
            middle = (low + high) / 2
            moved = shifted(self.collusion, ctx, part, value, x, 10.0**middle)
            low, high = (middle, high) if residual_and_floor(x, moved, tau)[0] < wanted else (low, middle)
        return shifted(self.collusion, ctx, part, value, x, 10.0**low)


@dataclass(kw_only=True, eq=False)
class ColludingAggregate(Attack):
    """Like wrong_aggregate, and all colluders report an s that makes the sum of verification 2 vanish.

    Formula: s_c[j] = -(1/c) * sum of s_i[j] over the others that went in, for each of the c colluders that went in;
    with cook = both also norm_c[j] = 0

    Source: Gorbunov et al., ICML 2022, the case that verification 3 and the validators are there for.

    Two hooks belong to it, the aggregate and the report. Verification 3 looks for a distance above `delta_max`, by
    default 10 times the typical one: with scale 2 the shift stays within, with scale 100 it is far beyond.
    """

    name = "colluding_aggregate"
    level = "protocol"
    requires_cohort = True
    scale: float = option(2.0, "shift in units of the typical distance to the aggregate", low=0)
    cook: str = option("s", "what the colluders lie about", choices=("s", "both"))
    tau: float | None = option(None, "clipping radius; none: that of the run", low=0)

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return shifted(self.collusion, ctx, part, value, x, self.scale)

    def report(self, ctx: Context, report: Report) -> Report:
        norms, products, record = list(report.norms), list(report.products), ctx.record
        for part, entry in record.announced.items():
            cooked = record.owner(part) in self.collusion.members and part in record.aggregates
            if cooked and ctx.peer in entry.senders:
                products[part] = self.collusion.shared(
                    ("cooked s", ctx.step, part), partial(self._share, ctx, part, entry.senders)
                )
                norms[part] = 0.0 if self.cook == "both" else norms[part]
        return replace(report, norms=tuple(norms), products=tuple(products))

    def _share(self, ctx: Context, part: int, senders: tuple[int, ...]) -> tuple[float, ...]:
        """What each colluder must say, per direction z, so that everybody's s sum up to zero."""
        count = ctx.config.directions if ctx.config is not None else 1
        value = ctx.record.aggregates[part]
        z = directions(ctx.record.coin, part, value.numel(), count, str(value.device), ctx.memory)
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
        return {peer: ctx.record.cut.committed(clip_gradient(gradient, clip)) for peer, gradient in pairs}

    def _tau(self, ctx: Context) -> float:
        return ctx.record.tau if self.tau is None else float(self.tau)


@dataclass(kw_only=True, eq=False)
class UnprovenAggregate(WrongAggregate):
    """Like wrong_aggregate, and lies about the parts that it must show when it is accused.

    Formula: nothing; copies of the announced aggregate in the senders' names, of which it would be the solution; all
    parts but one

    Source: ours: an aggregator that cannot show what it averaged is guilty.
    """

    name = "unproven_aggregate"
    show: str = option("copies", "what is shown", choices=("nothing", "copies", "incomplete"))

    def disclose(self, ctx: Context, claim: Claim, packets: Sequence[Packet]) -> Sequence[Packet]:
        if claim.accused != ctx.peer or claim.part not in ctx.record.aggregates or self.show == "nothing":
            return ()
        if self.show == "incomplete":
            return packets[:-1]
        copy = ctx.record.cut.body("part", ctx.record.aggregates[claim.part])
        return [replace(packet, body=copy) for packet in packets]
