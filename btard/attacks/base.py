"""What all attacks share: when they act, their options, and how these are declared, checked and described."""

from __future__ import annotations

import math
import types
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from btard.attacks.moments import MOMENTS
from btard.checks import FieldError, field_types
from btard.protocol.behaviour import Behaviour, Context, View
from btard.protocol.collusion import Collusion
from btard.protocol.messages import EXCLUSION_KINDS, MISSING_KINDS, Claim

Level = Literal["gradient", "protocol"]


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field of an attack that users may set; `low` and `high` are the inclusive range of a number.

    `help` is its documentation, `choices` are the values of a text.

    >>> import btard
    >>> from dataclasses import dataclass
    >>> @dataclass(kw_only=True, eq=False)
    ... class Louder(btard.Attack):
    ...     scale: float = btard.option(10.0, "amplification", low=0)
    ...
    ...     def gradient(self, ctx, gradient):
    ...         return gradient * self.scale
    >>> fellows = btard.Collusion(frozenset({3}), peers=8)
    >>> Louder(collusion=fellows, scale=2).scale
    2
    >>> Louder(collusion=fellows, scale=-1.0)
    Traceback (most recent call last):
    btard.checks.FieldError: attack Louder: scale must be >= 0, got -1.0
    """
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


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
    requires_cohort: ClassVar[bool] = False
    """Whether it needs the honest gradients of the step. In a swarm it gets those that the colluders see."""

    collusion: Collusion
    start: int = option(0, "first step of the attack", low=0)
    every: int = option(1, "act at every so-many-th step from start on", low=1)
    stop: int | None = option(None, "first step without the attack; none: it goes on", low=0)
    when: str = option("always", "which of these steps it picks, by what it knows then", choices=tuple(MOMENTS))

    def __post_init__(self) -> None:
        hints = field_types(type(self))
        for item in fields(self):
            if item.metadata:
                self._check(item.name, hints[item.name], getattr(self, item.name), item.metadata)
        if self.stop is not None and self.stop <= self.start:
            raise self._error("stop", f"must be > start, got {self.stop} and start {self.start}")

    def active(self, step: int) -> bool:
        if step < self.start or (self.stop is not None and step >= self.stop):
            return False
        return (step - self.start) % self.every == 0

    def acts(self, ctx: View) -> bool:
        return self.active(ctx.step) and MOMENTS[self.when](self.collusion, ctx)

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

    def _check(self, name: str, hint: Any, value: Any, rule: Any) -> None:
        """FieldError unless `value` has the declared type and lies in the declared range."""
        allowed = tuple(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        accepted = (*allowed, int) if float in allowed else allowed
        # True is an int to Python, but nobody means it as a number.
        if type(value) not in accepted:
            kinds = " or ".join("none" if kind is type(None) else kind.__name__ for kind in allowed)
            raise self._error(name, f"must be {kinds}, got {value!r}")
        if rule["choices"] is not None and value not in rule["choices"]:
            raise self._error(name, f"must be one of {', '.join(rule['choices'])}, got {value!r}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high = rule["low"], rule["high"]
            if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
                bounds = [f">= {low:g}" if low is not None else "", f"<= {high:g}" if high is not None else ""]
                wanted = " and ".join(bound for bound in bounds if bound) or "finite"
                raise self._error(name, f"must be {wanted}, got {value!r}")

    def _error(self, name: str, message: str) -> FieldError:
        return FieldError(name, message, owner=f"attack {self.name or type(self).__name__}: ")
