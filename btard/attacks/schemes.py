"""Plans of several moves: how aggregators and their fellows get away with a wrong aggregate, or frame others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from msgspec.structs import replace

from btard.attacks.base import Attack, option
from btard.protocol.behaviour import Context, View
from btard.protocol.choose import draw_validators
from btard.protocol.claims import WORK_KINDS
from btard.protocol.messages import NOBODY, Announce, Claim, Report
from btard.protocol.signed import Signed


def own_parts(ctx: Context) -> list[int]:
    """The parts that the attacker aggregates in this step."""
    return [part for part, owner in enumerate(ctx.record.owners) if owner == ctx.peer]


def chief(attack: Attack, ctx: Context) -> int:
    """The attacker that the others help: the first attacker that is a worker in this step, or nobody."""
    return next((peer for peer in ctx.record.workers if peer in attack.collusion.members), NOBODY)


@dataclass(kw_only=True, eq=False)
class LateAggregate(Attack):
    """Keeps its aggregate back until the others have reported without it, then accuses them for their reports.

    Formula: nobody honest gets a[j] before the reports. accuse: then all do, and all are accused of a misreport;
    favour: then only the validator that the coin has drawn for a fellow does, and the fellow has reported 2 norm_i[j]

    Source: ours: why reports on parts that no majority held before the coin cannot be held against anybody.
    """

    name = "late_aggregate"
    level = "protocol"
    then: str = option("accuse", "what the aggregate is used for", choices=("accuse", "favour"))

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return value if recipient in self.collusion.members or ctx.peer != chief(self, ctx) else None

    def forward(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        if ctx.record.owner(part) != chief(self, ctx):
            return value
        if not ctx.record.coin:  # before the reports
            return None
        return value if self.then == "accuse" or recipient == self._validator(ctx) else None

    def report(self, ctx: Context, report: Report) -> Report:
        if self.then == "accuse" or ctx.peer == chief(self, ctx):
            return report
        late = [ctx.record.owner(part) == chief(self, ctx) for part in range(len(report.norms))]
        return replace(report, norms=tuple(2 * n if kept else n for n, kept in zip(report.norms, late, strict=True)))

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        claims, record = super().accuse(ctx, claims), ctx.record
        if self.then != "accuse" or ctx.peer != chief(self, ctx):
            return claims
        listed = {part: entry.senders for part, entry in record.announced.items() if part in own_parts(ctx)}
        framed = {Claim(ctx.step, i, "misreport", part) for part, senders in listed.items() for i in senders}
        return tuple(sorted({*claims, *(claim for claim in framed if claim.accused not in self.collusion.members)}))

    def _validator(self, ctx: Context) -> int | None:
        """The honest peer that will validate a fellow, as far as that can be known before the verdicts."""
        record = ctx.record
        staying = tuple(peer for peer in record.members if peer != chief(self, ctx))
        drawn = draw_validators(record.coin, record.workers, staying, ctx.config.validators if ctx.config else 1)
        members = self.collusion.members
        return next((v for v, target in drawn.items() if target in members and v not in members), None)


@dataclass(kw_only=True, eq=False)
class CancellingLies(Attack):
    """Two reporters lie by opposite amounts about a right aggregate; when one is convicted, the honest alarm is false.

    Formula: s + x and s - x on the chief's parts, x = 5; once one of the liars is convicted, its corrected report lets
    the honest peers accuse the chief, and the others accuse every honest aggregator of the step before

    Source: ours: why nobody pays for a false alarm that had its cause in the reports.
    """

    name = "cancelling_lies"
    level = "protocol"
    x: float = option(5.0, "the lie", low=0)

    def report(self, ctx: Context, report: Report) -> Report:
        liars = [peer for peer in ctx.record.workers if peer in self.collusion.members and peer != chief(self, ctx)][:2]
        if ctx.peer not in liars or len(liars) < 2:
            return report
        lie, products = self.x if ctx.peer == liars[0] else -self.x, list(report.products)
        for part, entry in ctx.record.announced.items():
            if ctx.record.owner(part) == chief(self, ctx) and set(liars) <= set(entry.senders):
                products[part] = tuple(s + lie for s in products[part])
        return replace(report, products=tuple(products))

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        claims, last, record = super().accuse(ctx, claims), ctx.last, ctx.record
        fallen = {peer for peer, why in record.expelled.items() if why in WORK_KINDS}
        if last is None or 0 not in record.trials:
            return claims
        honest = set(record.members) - self.collusion.members
        framed = {
            Claim(last.step, last.owner(part), "wrong_aggregate", part)
            for part, entry in last.announced.items()
            if fallen & set(entry.senders) and last.owner(part) in honest
        }
        return tuple(sorted({*claims, *framed}))


@dataclass(kw_only=True, eq=False)
class SoleSender(Attack):
    """Leaves all peers except itself, or except its fellows, out of its list, and announces what it likes.

    Formula: a[j] = scale * (1, ..., 1), with a claim against every worker that is left out

    Source: ours: why a part whose list is in dispute does not count. Verifications 2 and 3 hear the listed alone.
    """

    name = "sole_sender"
    level = "protocol"
    listed: str = option("self", "which senders stay in the list", choices=("self", "fellows"))
    claim: str = option("withheld_part", "what the others are accused of", choices=("withheld_part", "bad_part"))
    scale: float = option(1e6, "entries of the announced aggregate")

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradient, self.scale)

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(value, self.scale)

    def say(
        self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Callable[[Any], Signed]
    ) -> tuple[Signed | None, Mapping[int, Signed | None]]:
        if not isinstance(payload, Announce):
            return message, {}
        kept = {ctx.peer} if self.listed == "self" else self.collusion.members
        parts = [replace(entry, senders=tuple(i for i in entry.senders if i in kept)) for entry in payload.parts]
        return sign(Announce(tuple(parts))), {}

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        record = ctx.record
        left_out = {
            Claim(ctx.step, worker, self.claim, part)
            for part in own_parts(ctx)
            if part in record.announced
            for worker in set(record.workers) - set(record.announced[part].senders)
        }
        return tuple(sorted({*super().accuse(ctx, claims), *left_out}))


@dataclass(kw_only=True, eq=False)
class FavouredHolder(Attack):
    """Lets its fellows and a single honest peer hold a wrong aggregate, so that a majority seems to have it.

    Formula: a[j] + scale * (1, ..., 1) to fellows, to one honest peer when aggregates are passed on before the coin, to
    all after the reports; fellows report norm 1 and s 0

    Source: ours: why holders are counted before the coin.
    """

    name = "favoured_holder"
    level = "protocol"
    scale: float = option(1e6, "shift of each entry")

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return value + self.scale if ctx.peer == chief(self, ctx) else value

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return value if recipient in self.collusion.members or ctx.peer != chief(self, ctx) else None

    def forward(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        if ctx.record.owner(part) != chief(self, ctx) or ctx.record.coin:
            return value
        favoured = next(peer for peer in ctx.record.workers if peer not in self.collusion.members)
        return value if recipient == favoured else None

    def report(self, ctx: Context, report: Report) -> Report:
        norms, products = list(report.norms), list(report.products)
        for part, entry in ctx.record.announced.items():
            if ctx.record.owner(part) == chief(self, ctx) and ctx.peer in entry.senders:
                norms[part], products[part] = 1.0, (0.0,) * len(products[part])
        return replace(report, norms=tuple(norms), products=tuple(products))


@dataclass(kw_only=True, eq=False)
class VanishingAggregator(Attack):
    """Announces a wrong aggregate and gets itself removed for something else before anybody can accuse it.

    Formula: a[j] + scale * (1, ..., 1), then nothing instead of the message of one phase

    Source: ours: why a part whose owner fell out before it could be tried does not count.
    """

    name = "vanishing_aggregator"
    level = "protocol"
    phase: str = option("report", "where it falls silent", choices=("coin_commit", "coin_reveal", "report", "accuse"))
    scale: float = option(1e6, "shift of each entry")

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return value + self.scale

    def say(
        self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Callable[[Any], Signed]
    ) -> tuple[Signed | None, Mapping[int, Signed | None]]:
        return (None if phase.partition("/")[0] == self.phase else message), {}
