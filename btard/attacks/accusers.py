"""Peers that lie about numbers and about each other: misreports, false accusations, and validators that look away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from msgspec.structs import replace

from btard.attacks.base import Attack, option
from btard.protocol.behaviour import Context
from btard.protocol.messages import CLAIM_KINDS, EXCUSED, FALSE_CLAIM, GUILTY, NOBODY, Claim, Packet, Report

OWNER_KINDS = ("misreport", "bad_part", "withheld_part")
"""Claims that only the owner of the part can make."""


@dataclass(kw_only=True, eq=False)
class Misreport(Attack):
    """Reports a norm or an s that its part does not give, for all parts.

    Formula: factor * norm_i[j], factor * s_i[j], or both; with `tolerances` x instead norm_i[j] (1 + x tol) and
    s_i[j] + 10 x tol min(tau, norm_i[j]), where tol is the judges' tolerance

    Source: Gorbunov et al., ICML 2022, what verification 1 is there for.

    A judge convicts beyond x = 1 and an honest owner accuses beyond x = 2: with x between them nobody is banned.
    """

    name = "misreport"
    level = "protocol"
    what: str = option("s", "which of the two numbers is wrong", choices=("norm", "s", "both"))
    factor: float = option(1.5, "reported by true value", low=0)
    tolerances: float | None = option(None, "off by this many times the judges' tolerance; none: by factor", low=0)

    def report(self, ctx: Context, report: Report) -> Report:
        norms, products = report.norms, report.products
        if self.tolerances is not None:
            return self._at_the_edge(ctx, report, self.tolerances)
        if self.what in ("norm", "both"):
            norms = tuple(self.factor * norm for norm in norms)
        if self.what in ("s", "both"):
            products = tuple(tuple(self.factor * s for s in row) for row in products)
        return replace(report, norms=norms, products=products)

    def _at_the_edge(self, ctx: Context, report: Report, x: float) -> Report:
        if ctx.config is None:
            raise ValueError(f"attack {self.name}: the run's tolerance is not known here, give factor")
        tol, tau = x * ctx.config.scalar_tol, ctx.record.tau
        norms, products = report.norms, report.products
        if self.what in ("s", "both"):
            moved = zip(products, norms, strict=True)
            products = tuple(tuple(s + 10 * tol * min(tau, norm) for s in row) for row, norm in moved)
        if self.what in ("norm", "both"):
            norms = tuple(norm * (1 + tol) for norm in norms)
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


@dataclass(kw_only=True, eq=False)
class LyingVotes(Attack):
    """A judge that does not vote for what it sees.

    Formula: guilty, false or excused whatever the claim; opposite: guilty for false and false for guilty; fellows:
    false where a fellow is accused and guilty where an honest peer is; random: one of the three verdicts

    Source: ours, after Gorbunov et al., ICML 2022: the reason why a majority decides.
    """

    name = "lying_votes"
    level = "protocol"
    how: str = option(
        "fellows", "how it votes", choices=("guilty", "false", "excused", "opposite", "fellows", "random")
    )

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        if self.how == "opposite":
            return {GUILTY: FALSE_CLAIM, FALSE_CLAIM: GUILTY}.get(verdict, verdict)
        if self.how == "fellows":
            return FALSE_CLAIM if claim.accused in self.collusion.members else GUILTY
        if self.how == "random":
            names = (ctx.step, ctx.peer, claim.accused, claim.kind, claim.part)
            return (GUILTY, FALSE_CLAIM, EXCUSED)[int(self.collusion.stream("vote", *names).integers(3))]
        return {"guilty": GUILTY, "false": FALSE_CLAIM, "excused": EXCUSED}[self.how]


SHOWN = ("nothing", "garbage", "forged", "genuine", "another")


@dataclass(kw_only=True, eq=False)
class FalseEvidence(FalseAccusation):
    """Like false_accusation, and lies about the evidence.

    Formula: nothing; bytes that are no tensor, or other numbers, in the author's name; the author's genuine packet;
    another author's packet under its name

    Source: ours: evidence is as hostile as any message.
    """

    name = "false_evidence"
    kind: str = option("bad_part", "what the victim is accused of", choices=tuple(sorted(CLAIM_KINDS)))
    show: str = option("forged", "what is shown", choices=SHOWN)

    def disclose(self, ctx: Context, claim: Claim, packets: Sequence[Packet]) -> Sequence[Packet]:
        if self.show == "nothing" or claim.part == NOBODY:
            return ()
        received = ctx.record.received.get(claim.part, {})
        genuine = list(packets) or [received[i] for i in (claim.accused,) if i in received]
        if self.show == "genuine":
            return genuine
        if self.show == "another":
            return [replace(received[i], sender=claim.accused) for i in sorted(received) if i != claim.accused][:1]
        size = ctx.record.cut.size(claim.part)
        body = b"\xff no tensor" if self.show == "garbage" else torch.full((size,), 7.0)
        kind = "aggregate" if claim.kind.endswith("aggregate") else "part"
        forged = Packet(kind, claim.accused, claim.step, claim.part, body, bytes(64))
        return [replace(packet, body=body) for packet in genuine] or [forged]
