"""Options of attacks and rules: dataclass fields that users may set, which say themselves what they allow."""

from __future__ import annotations

import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin

from btard.checks import FieldError, field_types


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A dataclass field of an attack or a rule that users may set.

    `help` is its documentation; `low` and `high` are the inclusive range of a number, `choices` the values of a text.

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


def option_names(cls: type) -> list[str]:
    """The options that the dataclass `cls` declares, in order."""
    return [item.name for item in fields(cls) if item.metadata]


def check_known(chosen: Iterable[str], known: list[str], owner: str) -> None:
    """FieldError for the first of the `chosen` options that is none of the `known`; `owner` is named in the text."""
    for name in chosen:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise FieldError(name, f"is no option{nearest(name, known)}; {has}", owner=f"{owner}: ")


def check_options(made: Any, owner: str) -> None:
    """FieldError unless all options of the dataclass object `made` have the declared types and ranges."""
    hints = field_types(type(made))
    for item in fields(made):
        if item.metadata:
            problem = _problem(hints[item.name], getattr(made, item.name), item.metadata)
            if problem:
                raise FieldError(item.name, f"must be {problem}, got {getattr(made, item.name)!r}", owner=f"{owner}: ")


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint to the word that was meant, or nothing."""
    close = get_close_matches(str(word), list(words), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _problem(hint: Any, value: Any, rule: Mapping[str, Any]) -> str:
    """What `value` must be and is not; nothing if it has the declared type and lies in the declared range."""
    allowed = tuple(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    accepted = (*allowed, int) if float in allowed else allowed
    # True is an int to Python, but nobody means it as a number.
    if type(value) not in accepted:
        return " or ".join("none" if kind is type(None) else kind.__name__ for kind in allowed)
    if rule["choices"] is not None and value not in rule["choices"]:
        return f"one of {', '.join(rule['choices'])}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = rule["low"], rule["high"]
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            bounds = [f">= {low:g}" if low is not None else "", f"<= {high:g}" if high is not None else ""]
            return " and ".join(bound for bound in bounds if bound) or "finite"
    return ""
