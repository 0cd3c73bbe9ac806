"""Peers that lie about numbers and about each other: misreports, false accusations, and validators that look away."""

from __future__ import annotations

from dataclasses import dataclass, replace

from btard.attacks.base import Attack, option
from btard.protocol.behaviour import Context
from btard.protocol.messages import CLAIM_KINDS, Claim, Report

OWNER_KINDS = ("misreport", "bad_part", "withheld_part")
"""Claims that only the owner of the part can make."""


@dataclass(kw_only=True, eq=False)
class Misreport(Attack):
    """Reports a norm or an s that its part does not give, for all parts.

    Formula: factor * norm_i[j], factor * s_i[j], or both

    Source: Gorbunov et al., ICML 2022, what verification 1 is there for.
    """

    name = "misreport"
    level = "protocol"
    what: str = option("s", "which of the two numbers is wrong", choices=("norm", "s", "both"))
    factor: float = option(1.5, "reported by true value", low=0)

    def report(self, ctx: Context, report: Report) -> Report:
        norms, products = report.norms, report.products
        if self.what in ("norm", "both"):
            norms = tuple(self.factor * norm for norm in norms)
        if self.what in ("s", "both"):
            products = tuple(tuple(self.factor * s for s in row) for row in products)
        return replace(report, norms=norms, products=products)


@dataclass(kw_only=True, eq=False)
class FalseAccusation(Attack):
    """Accuses an honest peer of something that it did not do, of any kind that the accuser's role allows.

    Formula: ACCUSE(i, target) of the given kind, in every step in which somebody can be accused so

    Source: Gorbunov et al., ICML 2022, the reason why a false accusation costs the accuser its place.

    A wrong gradient is claimed about the step before, the rest about the present one. What a part's owner alone can
    know (misreport, bad_part, withheld_part) is claimed by owners only. By default all attackers of a step agree
    on one victim.
    """

    name = "false_accusation"
    level = "protocol"
    kind: str = option("wrong_gradient", "what the victim is accused of", choices=tuple(sorted(CLAIM_KINDS)))
    target: int | None = option(None, "the victim; none: an honest peer drawn for each step", low=0)
    together: bool = option(True, "whether all attackers draw the same victim")

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        claims, false = super().accuse(ctx, claims), self._claim(ctx)
        return claims if false is None else tuple(sorted({*claims, false}))

    def _claim(self, ctx: Context) -> Claim | None:
        record = ctx.record
        if self.kind == "wrong_gradient":
            # Who worked in the step before is known at the latest from the validators' targets.
            workers = ctx.last.workers if ctx.last is not None else tuple(record.assignments.values())
            victim = self._victim(ctx, workers)
            return None if victim is None else Claim(record.step - 1, victim, self.kind)
        if self.kind in OWNER_KINDS:
            parts = [part for part, owner in enumerate(record.owners) if owner == ctx.peer]
            victim = self._victim(ctx, record.workers)
        else:
            victim = self._victim(ctx, tuple(record.owner(part) for part in record.announced))
            parts = [part for part in sorted(record.announced) if record.owner(part) == victim]
        return Claim(record.step, victim, self.kind, parts[0]) if victim is not None and parts else None

    def _victim(self, ctx: Context, candidates: tuple[int, ...]) -> int | None:
        honest = sorted(set(candidates) & set(ctx.record.active) - self.collusion.members)
        if self.target is not None:
            return self.target if self.target in honest else None
        names = (ctx.step,) if self.together else (ctx.step, ctx.peer)
        return honest[int(self.collusion.stream("victim", *names).integers(len(honest)))] if honest else None


@dataclass(kw_only=True, eq=False)
class NeverAccuse(Attack):
    """A validator that finds every gradient right.

    Formula: no ACCUSE of a wrong gradient

    Source: Gorbunov et al., ICML 2022: a Byzantine validator costs one missed check and nothing else.
    """

    name = "never_accuse"
    level = "protocol"

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return tuple(claim for claim in claims if claim.kind != "wrong_gradient")
