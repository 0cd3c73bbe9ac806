"""What all attacks share: when they act, their options, and how these are declared, checked and described."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from btard.attacks.moments import MOMENTS
from btard.checks import FieldError
from btard.options import check_options, option
from btard.protocol.behaviour import Behaviour, Context, View
from btard.protocol.collusion import Collusion
from btard.protocol.messages import EXCLUSION_KINDS, MISSING_KINDS, Claim

Level = Literal["gradient", "protocol"]


def without_fellows(claims: tuple[Claim, ...], fellows: frozenset[int]) -> tuple[Claim, ...]:
    """Whatever the attack, no attacker reports a fellow, least of all as its validator.

    But for a part or an aggregate that it rejected: keeping that quiet would give itself away.
    """
    return tuple(c for c in claims if c.accused not in fellows or c.kind in EXCLUSION_KINDS + MISSING_KINDS)


class Loyal(Behaviour):
    """An attacker in the steps in which it does not attack: honest, but it reports none of its `fellows`."""

    byzantine = True

    def __init__(self, fellows: frozenset[int]) -> None:
        self.fellows = fellows

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return without_fellows(claims, self.fellows)


@dataclass(kw_only=True, eq=False)
class Attack(Behaviour):
    """A Byzantine peer. A subclass overrides one more hook of `Behaviour` and declares its options as dataclass fields.

    The docstring of a subclass is its documentation everywhere: the first line is the summary, the paragraphs
    "Formula:" and "Source:" are shown by `describe`. One object per peer; what the attackers share lies in `collusion`.

    >>> import btard
    >>> class Halved(btard.Attack):
    ...     "Sends half of its gradient."
    ...
    ...     name = "halved"
    ...
    ...     def gradient(self, ctx, gradient):
    ...         return gradient / 2
    >>> Halved(collusion=btard.Collusion(frozenset({3}), peers=8), start=10).active(9)
    False
    """

    byzantine = True
    name: ClassVar[str] = ""
    level: ClassVar[Level] = "gradient"

    collusion: Collusion
    start: int = option(0, "first step of the attack", low=0)
    every: int = option(1, "act at every so-many-th step from start on", low=1)
    stop: int | None = option(None, "first step without the attack; none: it goes on", low=0)
    when: str = option("always", "which of these steps it picks, by what it knows then", choices=tuple(MOMENTS))

    def __post_init__(self) -> None:
        check_options(self, self._owner)
        if self.stop is not None and self.stop <= self.start:
            raise self._error("stop", f"must be > start, got {self.stop} and start {self.start}")

    def active(self, step: int) -> bool:
        if step < self.start or (self.stop is not None and step >= self.stop):
            return False
        return (step - self.start) % self.every == 0

    def acts(self, ctx: View) -> bool:
        # Where no honest peer works in a step, as all of them are slow, there is nothing to start from.
        blind = self.requires_cohort and self.collusion.step == ctx.step and not self.collusion.honest_peers
        return self.active(ctx.step) and not blind and MOMENTS[self.when](self.collusion, ctx)

    @cached_property
    def resting(self) -> Behaviour:
        """Honest, but loyal to its fellows."""
        return Loyal(self.collusion.members)

    def check_validators(self, validators: int) -> None:
        if self.when != "always" and not validators:
            raise self._error(
                "when",
                f"{self.when} is about escaping validators, and this run has none; choose always, or the protocol "
                "with validators >= 1",
            )

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return without_fellows(claims, self.collusion.members)

    @property
    def _owner(self) -> str:
        return f"attack {self.name or type(self).__name__}"

    def _error(self, name: str, message: str) -> FieldError:
        return FieldError(name, message, owner=f"{self._owner}: ")
