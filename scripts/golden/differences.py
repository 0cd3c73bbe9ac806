"""Where two records differ, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SECTIONS = ("matrix", "soak", "variants", "resnet", "torchrun", "swarm")
"""The kinds of runs of a record."""
Line = dict[str, Any]
"""section, name, seed, and fields: the run's results. Its format must stay: trees of different ages write it."""
Key = tuple[str, str, int]
"""Section, name and seed of a run."""
Record = Mapping[Key, Mapping[str, Any]]
"""Run -> its fields."""
ABSENT = "(absent)"
SHOWN = 80
"""Characters of a value that are shown."""
INSIDE = " at "
"""Separates the name of a field from the place in it."""


@dataclass(frozen=True)
class Difference:
    """The first place in which a field of a run differs."""

    key: Key
    field: str
    """The field's name, and the place in it: `effects at [3]["0 1 4"][7]`."""
    old: str
    new: str

    def __str__(self) -> str:
        section, name, seed = self.key
        return f"{section} | {name} | seed {seed} | {self.field} | {self.old} | {self.new}"


def key_of(line: Line) -> Key:
    return line["section"], line["name"], line["seed"]


def differences(old: Record, new: Record) -> Iterator[Difference]:
    """One for each field that differs; a run that only one of them has is one as a whole."""
    for key in (*old, *(key for key in new if key not in old)):
        if key not in old or key not in new:
            yield Difference(key, "the run", *(ABSENT if key not in side else "(there)" for side in (old, new)))
            continue
        for field in dict.fromkeys((*old[key], *new[key])):
            place = _first(old[key].get(field, ABSENT), new[key].get(field, ABSENT), "")
            if place is not None:
                where, *values = place
                yield Difference(key, field + (INSIDE + where if where else ""), *values)


def _first(old: Any, new: Any, where: str) -> tuple[str, str, str] | None:
    """Where the JSON values `old` and `new` differ first, and the values there; None if they are equal."""
    if old == new and type(old) is type(new):
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys((*old, *new)):
            place = _first(old.get(key, ABSENT), new.get(key, ABSENT), f'{where}["{key}"]')
            if place is not None:
                return place
    if isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            values = [side[index] if index < len(side) else ABSENT for side in (old, new)]
            place = _first(values[0], values[1], f"{where}[{index}]")
            if place is not None:
                return place
    if isinstance(old, str) and isinstance(new, str) and ", " in old and ", " in new:
        place = _first(old.split(", "), new.split(", "), where)
        if place is not None:
            return place
    return where, _short(old), _short(new)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
