"""Attacks on healing: liars about the states, attackers that leave by themselves, and harm that no loss shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace

from btard.attacks.base import Attack, option
from btard.attacks.speech import Said, Sign, named
from btard.attacks.statistics import honest_mean
from btard.protocol.behaviour import Context, View
from btard.protocol.hashing import digest
from btard.protocol.messages import Claim, CoinReveal, Measured
from btard.protocol.signed import Signed

HUGE = 1.7e308


def _oldest(said: Measured) -> Measured:
    states = len(said.losses)
    return replace(said, losses=(-1.0, *(1.0,) * (states - 1)), bounds=(-1.0, *(1.0,) * (states - 2)))


def _present(said: Measured) -> Measured:
    states = len(said.losses)
    return replace(said, losses=(*(1.0,) * (states - 1), -1.0), bounds=(1.0,) * (states - 1))


def _opposite(said: Measured) -> Measured:
    return replace(said, losses=said.losses[::-1], bounds=tuple(-bound for bound in said.bounds))


def _huge(said: Measured) -> Measured:
    return replace(said, losses=(-HUGE,) * len(said.losses), bounds=(-HUGE,) * len(said.bounds))


def _digests(said: Measured) -> Measured:
    return replace(_oldest(said), digests=tuple(digest("no such state", hashed) for hashed in said.digests))


LIES: Mapping[str, Callable[[Measured], Measured | None]] = {
    "oldest": _oldest,
    "present": _present,
    "opposite": _opposite,
    "huge": _huge,
    "digests": _digests,
    "silent": lambda said: None,
    "short": lambda said: replace(said, losses=said.losses[:-1]),
    "long": lambda said: replace(said, bounds=(*said.bounds, -1.0)),
    "empty": lambda said: Measured((), (), ()),
    "nan": lambda said: replace(said, losses=(math.nan,) * len(said.losses)),
    "infinite": lambda said: replace(said, bounds=(-math.inf,) * len(said.bounds)),
}
"""What a liar reports instead of what it has measured; None says nothing."""


@dataclass(kw_only=True, eq=False)
class HealingLies(Attack):
    """Lies about the states among which healing chooses.

    Formula: oldest, present: that state is by far the best one; opposite: the losses in reverse, the bounds negated;
    huge: all earlier states are better by 1.7e308; digests: the oldest is best, of states that nobody has; silent:
    nothing; short, long, empty, nan, infinite: a message that cannot be

    Source: ours. Nobody pays for a number that is wrong, since honest losses differ in mode tolerant. More than half
    of the peers decide.
    """

    name = "healing_lies"
    level = "protocol"
    what: str = option("oldest", "the lie", choices=tuple(LIES))

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Sign) -> Said:
        if not isinstance(payload, Measured):
            return message, {}
        lie = LIES[self.what](payload)
        return (None if lie is None else sign(lie)), {}


@dataclass(kw_only=True, eq=False)
class HitAndRun(Attack):
    """Attacks for some steps and then leaves by itself, before anybody has caught it.

    Formula: -scale * g_i in `hits` steps, in each `every`-th. Then silent: no accusations; absent: not in the roll
    call any more; eliminate: it lacks the
    aggregate of an honest owner, it says, and both go; betrayed: it hits on, and a fellow that validates it may turn
    it in

    Source: ours: why every removal of a member starts healing. With 0 hits it sacrifices itself for nothing but that.
    """

    name = "hit_and_run"
    level = "protocol"
    hits: int = option(3, "steps in which it hits", low=0)
    scale: float = option(1000.0, "amplification", low=0)
    leave: str = option("silent", "how it goes", choices=("silent", "absent", "eliminate", "betrayed"))

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return gradient if self._leaving(ctx) and self.leave != "betrayed" else gradient * -self.scale

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Sign) -> Said:
        if not self._leaving(ctx):
            return message, {}
        if named(phase) == {"silent": "accuse", "absent": "commit"}.get(self.leave):
            return None, {}
        if self.leave == "eliminate" and phase == "coin_reveal/0" and isinstance(payload, CoinReveal):
            lacked = {part for _, part in self._victims(ctx)}
            return sign(CoinReveal.lacking(sorted({*payload.missing, *lacked}))), {}
        return message, {}

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        if not self._leaving(ctx):
            return super().accuse(ctx, claims)
        if self.leave == "betrayed":
            return claims
        claims = super().accuse(ctx, claims)
        if self.leave != "eliminate" or ctx.record.trials:
            return claims
        false = {Claim(ctx.step, owner, "withheld_aggregate", part) for owner, part in self._victims(ctx)}
        return tuple(sorted({*claims, *false}))

    def _leaving(self, ctx: View) -> bool:
        return ctx.step >= self.start + self.hits * self.every

    def _victims(self, ctx: Context) -> list[tuple[int, int]]:
        """(owner, part) of the honest peer that it takes with it, a different one for each fellow: at most one."""
        record, members = ctx.record, self.collusion.members
        honest = [(record.owner(part), part) for part in sorted(record.announced)]
        honest = [(owner, part) for owner, part in honest if owner not in members]
        order = [peer for peer in record.members if peer in members]
        number = order.index(ctx.peer) if ctx.peer in order else len(order)
        return honest[number : number + 1]


@dataclass(kw_only=True, eq=False)
class BlindSpot(Attack):
    """Sends the honest mean, and pushes in a direction in which the loss does not change at first.

    Formula: mu + scale * ||mu|| * v; v is a unit vector, drawn once, less what of it lies along mu

    Source: ours: healing sees the public loss alone. To first order the step lowers it like an honest one.
    """

    name = "blind_spot"
    requires_cohort = True
    scale: float = option(1.0, "length of the push in units of the honest mean", low=0)

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        def draw() -> torch.Tensor:
            normal = self.collusion.stream("blind spot").standard_normal(gradient.numel(), dtype=np.float32)
            return torch.from_numpy(normal).to(gradient)

        def make() -> torch.Tensor:
            mean = honest_mean(self.collusion)
            direction = self.collusion.constant(("blind spot", gradient.numel(), str(gradient.device)), draw)
            length = torch.linalg.vector_norm(mean)
            along = mean / length.clamp(min=torch.finfo(mean.dtype).tiny)
            across = direction - torch.dot(direction, along) * along
            return torch.add(mean, across, alpha=self.scale * float(length / torch.linalg.vector_norm(across)))

        return self.collusion.shared(("blind spot", self.scale), make)
