"""Peers that send broken, different or no messages."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from btard.attacks.base import Attack, option
from btard.protocol.behaviour import Context
from btard.protocol.messages import CoinReveal, Report

GARBAGE = b"\xff not a tensor"

RECIPIENTS = ("one", "all")
PHASES = ("commit", "part", "aggregate", "reveal", "report")


def is_victim(attack: Attack, ctx: Context, recipients: str, peer: int, among: tuple[int, ...]) -> bool:
    """Whether `peer` is to be wronged: any honest peer, or the one of `among` that is drawn for attacker and step."""
    members = attack.collusion.members
    honest = sorted(set(among) - members - {ctx.peer})
    if recipients == "all" or not honest:
        return peer in honest
    return peer == honest[int(attack.collusion.stream("victim", ctx.step, ctx.peer).integers(len(honest)))]


def spoiled(body: torch.Tensor, send: str) -> torch.Tensor | bytes:
    """Something else than `body` [p]: "other" numbers, "short" by an entry, "nan", or "garbage" bytes."""
    if send == "garbage":
        return GARBAGE
    if send == "short":
        return body[:-1].clone()
    return torch.full_like(body, math.nan) if send == "nan" else body * 2 + 1


SPOILED = ("other", "short", "nan", "garbage")


@dataclass(kw_only=True, eq=False)
class NonFinite(Attack):
    """Commits to a gradient that holds NaN or infinity, as a diverged peer would.

    Formula: g_i with one entry, or all of them, replaced by NaN or +inf

    Source: ours; plain averaging never recovers from one such entry.
    """

    name = "non_finite"
    level = "protocol"
    value: str = option("nan", "what is sent", choices=("nan", "inf"))
    entries: str = option("one", "one entry, drawn anew for each step, or all", choices=("one", "all"))

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        bad = gradient.clone()
        index = int(self.collusion.stream("entry", ctx.step, ctx.peer).integers(bad.numel()))
        chosen = bad if self.entries == "all" else bad[index : index + 1]
        chosen.fill_(float(self.value))
        return bad


@dataclass(kw_only=True, eq=False)
class BadPart(Attack):
    """Sends other bytes than it committed to.

    Formula: 2 g_i[j] + 1, a part that is one entry short, NaN, or no tensor at all, instead of g_i[j]

    Source: ours, after Gorbunov et al., ICML 2022: the reason for commitments.
    """

    name = "bad_part"
    level = "protocol"
    recipients: str = option("all", "which honest owners get it: one per step, or all", choices=RECIPIENTS)
    send: str = option("other", "what they get", choices=SPOILED)

    def part(self, ctx: Context, part: int, body: torch.Tensor) -> torch.Tensor | bytes:
        wronged = is_victim(self, ctx, self.recipients, ctx.record.owner(part), ctx.record.owners)
        return spoiled(body, self.send) if wronged else body


@dataclass(kw_only=True, eq=False)
class WithheldPart(Attack):
    """Commits to its gradient and does not send the parts.

    Formula: nothing instead of g_i[j]

    Source: Gorbunov et al., ICML 2022, ELIMINATE.
    """

    name = "withheld_part"
    level = "protocol"
    recipients: str = option("one", "which honest owners get nothing: one per step, or all", choices=RECIPIENTS)

    def part(self, ctx: Context, part: int, body: torch.Tensor) -> torch.Tensor | None:
        wronged = is_victim(self, ctx, self.recipients, ctx.record.owner(part), ctx.record.owners)
        return None if wronged else body


@dataclass(kw_only=True, eq=False)
class BadAggregate(Attack):
    """Sends some peers another aggregate than the one it announced.

    Formula: 2 a[j] + 1, an aggregate that is one entry short, NaN, or no tensor at all, instead of a[j]

    Source: ours, after Gorbunov et al., ICML 2022: the reason for announcing the aggregate's hash.
    """

    name = "bad_aggregate"
    level = "protocol"
    recipients: str = option("one", "which honest peers get it: one per step, or all", choices=RECIPIENTS)
    send: str = option("other", "what they get", choices=SPOILED)

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | bytes:
        wronged = is_victim(self, ctx, self.recipients, recipient, ctx.record.remaining)
        return spoiled(value, self.send) if wronged else value


@dataclass(kw_only=True, eq=False)
class WithheldAggregate(Attack):
    """Announces an aggregate and does not send it.

    Formula: nothing instead of a[j]

    Source: Gorbunov et al., ICML 2022, ELIMINATE.
    """

    name = "withheld_aggregate"
    level = "protocol"
    recipients: str = option("one", "which honest peers get nothing: one per step, or all", choices=RECIPIENTS)

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        wronged = is_victim(self, ctx, self.recipients, recipient, ctx.record.remaining)
        return None if wronged else value


@dataclass(kw_only=True, eq=False)
class Silent(Attack):
    """Says nothing to anybody in one phase of the step.

    Formula: nothing instead of the phase's message

    Source: ours; a peer that crashed looks like this from that phase on.

    Before its commitment a peer owes nothing and is absent for the step; afterwards it owes every phase.
    """

    name = "silent"
    level = "protocol"
    phase: str = option("commit", "where it is silent", choices=PHASES)

    def commit(self, ctx: Context, digests: tuple[bytes, ...]) -> tuple[bytes, ...] | None:
        return None if self.phase == "commit" else digests

    def part(self, ctx: Context, part: int, body: torch.Tensor) -> torch.Tensor | None:
        return None if self.phase == "part" and ctx.record.owner(part) != ctx.peer else body

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return None if self.phase == "aggregate" else value

    def reveal(self, ctx: Context, reveal: CoinReveal) -> CoinReveal | None:
        return None if self.phase == "reveal" else reveal

    def report(self, ctx: Context, report: Report) -> Report | None:
        return None if self.phase == "report" else report


@dataclass(kw_only=True, eq=False)
class WrongReveal(Attack):
    """Reveals another coin value than it committed to, to steer the coin after having seen the others.

    Formula: (u_i with all bits flipped, salt_i) instead of (u_i, salt_i)

    Source: Gorbunov et al., ICML 2022, MPRNG.
    """

    name = "wrong_reveal"
    level = "protocol"

    def reveal(self, ctx: Context, reveal: CoinReveal) -> CoinReveal:
        return replace(reveal, value=bytes(byte ^ 0xFF for byte in reveal.value))
