"""Peers that lie about numbers and about each other: misreports, false accusations, and validators that look away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from msgspec.structs import replace

from btard.attacks.base import Attack, option
from btard.protocol.behaviour import Context
from btard.protocol.claims import WORK_KINDS
from btard.protocol.messages import (
    CLAIM_KINDS,
    EXCUSED,
    FALSE_CLAIM,
    GUILTY,
    MISSING_KINDS,
    NOBODY,
    PROBATION_KINDS,
    Claim,
    CoinReveal,
    Report,
)
from btard.protocol.signed import Packet, Signed

OWNER_KINDS = ("misreport", "bad_part", "withheld_part")
"""Claims that only the owner of the part can make."""


@dataclass(kw_only=True, eq=False)
class Misreport(Attack):
    """Reports a norm, an s or a size that its part does not give, for all parts.

    Formula: factor * norm_i[j], factor * s_i[j], both, or factor * ||g_i[j]||; with `tolerances` x instead
    norm_i[j] (1 + x tol), s_i[j] + 10 x tol min(tau, norm_i[j]) and ||g_i[j]|| (1 + x tol), where tol is the judges'
    tolerance

    Source: Gorbunov et al., ICML 2022, what verification 1 is there for.

    A judge convicts beyond x = 1 and an honest owner accuses beyond x = 2: with x between them nobody is banned.
    """

    name = "misreport"
    level = "protocol"
    what: str = option("s", "which of the numbers is wrong; both: norm and s", choices=("norm", "s", "both", "size"))
    factor: float = option(1.5, "reported by true value", low=0)
    tolerances: float | None = option(None, "off by this many times the judges' tolerance; none: by factor", low=0)

    def report(self, ctx: Context, report: Report) -> Report:
        norms, products, sizes = report.norms, report.products, report.sizes
        if self.tolerances is not None:
            return self._at_the_edge(ctx, report, self.tolerances)
        if self.what == "size":
            sizes = tuple(self.factor * size for size in sizes)
        if self.what in ("norm", "both"):
            norms = tuple(self.factor * norm for norm in norms)
        if self.what in ("s", "both"):
            products = tuple(tuple(self.factor * s for s in row) for row in products)
        return replace(report, norms=norms, products=products, sizes=sizes)

    def _at_the_edge(self, ctx: Context, report: Report, x: float) -> Report:
        if ctx.config is None:
            raise ValueError(f"attack {self.name}: the run's tolerance is not known here, give factor")
        tol, tau = x * ctx.config.scalar_tol, ctx.record.tau
        norms, products, sizes = report.norms, report.products, report.sizes
        if self.what == "size":
            sizes = tuple(size * (1 + tol) for size in sizes)
        if self.what in ("s", "both"):
            moved = zip(products, norms, strict=True)
            products = tuple(tuple(s + 10 * tol * min(tau, norm) for s in row) for row, norm in moved)
        if self.what in ("norm", "both"):
            norms = tuple(norm * (1 + tol) for norm in norms)
        return replace(report, norms=norms, products=products, sizes=sizes)


@dataclass(kw_only=True, eq=False)
class FalseAccusation(Attack):
    """Accuses an honest peer of something that it did not do, of any kind that the accuser's role allows.

    Formula: ACCUSE(i, target) of the given kind, in every step in which somebody can be accused so

    Source: Gorbunov et al., ICML 2022, the reason why a false accusation costs the accuser its place.

    A validator alone can claim that its target's gradient is wrong; the owner of a part what only it can know
    (misreport, bad_part, withheld_part); who said before the coin that it lacks an aggregate, and it says so, that this
    is bad or withheld. A wrong aggregate of the present step is nobody's to claim, since the reports put it on trial;
    one of the step before is anybody's once a reporter has been convicted. By default all attackers of a step agree on
    one victim.
    """

    name = "false_accusation"
    level = "protocol"
    kind: str = option("wrong_gradient", "what the victim is accused of", choices=tuple(sorted(CLAIM_KINDS)))
    about: str = option("now", "wrong_aggregate: the step that the claim is about", choices=("now", "before"))
    target: int | None = option(None, "the victim; none: an honest peer drawn for each step", low=0)
    together: bool = option(True, "whether all attackers draw the same victim")

    def say(
        self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Callable[[Any], Signed]
    ) -> tuple[Signed | None, Mapping[int, Signed | None]]:
        if phase != "coin_reveal/0" or self.kind not in MISSING_KINDS or (false := self._claim(ctx)) is None:
            return message, {}
        missing = () if payload is None else payload.missing
        return sign(CoinReveal.lacking(sorted({*missing, false.part}))), {}

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        claims = super().accuse(ctx, claims)
        second_round = 0 in ctx.record.trials
        false = self._claim(ctx) if second_round == (self.about == "before") else None
        return claims if false is None else tuple(sorted({*claims, false}))

    def _claim(self, ctx: Context) -> Claim | None:
        record = ctx.record
        if self.kind == "wrong_gradient":
            victim = self._victim(ctx, (record.assignments.get(ctx.peer, NOBODY),))
            return None if victim is None else Claim(record.step - 1, victim, self.kind)
        if self.kind in OWNER_KINDS:
            parts = [part for part, owner in enumerate(record.owners) if owner == ctx.peer]
            victim = self._victim(ctx, record.workers)
        else:
            about = ctx.last if self.about == "before" else record
            if about is None:
                return None
            parts = sorted(about.announced)
            if about is not record:
                fallen = {peer for peer, why in record.expelled.items() if why in WORK_KINDS}
                parts = [part for part in parts if fallen & set(about.announced[part].senders)]
            victim = self._victim(ctx, tuple(about.owner(part) for part in parts))
            parts = [part for part in parts if about.owner(part) == victim]
            return Claim(about.step, victim, self.kind, parts[0]) if victim is not None else None
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

    Formula: no ACCUSE of a wrong gradient; a newcomer that it did not check is right, too

    Source: Gorbunov et al., ICML 2022: a Byzantine validator costs one missed check and nothing else.
    """

    name = "never_accuse"
    level = "protocol"

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return tuple(claim for claim in claims if claim.kind not in ("wrong_gradient", *PROBATION_KINDS))


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
