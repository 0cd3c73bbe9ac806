"""What files that describe many runs have in common: sections, settings by name, and names of folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from btard.harness.typed_yaml import ConfigError, Setting, keys, nearest, settings_of

Settings = tuple[type, str]


def check_keys(content: Mapping[str, Any], known: Sequence[str], where: str, *, one: Settings | None = None) -> None:
    """Raise ConfigError for a key that is not among `known`; `where` appears in error messages here and below.

    `one`: the settings of a single run, whose file may have been given instead, and the program that takes it.
    """
    heads = set() if one is None else {key.partition(".")[0] for key in keys(one[0])}
    for key in content:
        if key not in known and one is not None and str(key).partition(".")[0] in heads:
            raise ConfigError(f"{where}: holds the settings of one run, no grid: {one[1]} {where} --out RUN_DIR")
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(str(key), known)} ({', '.join(known)})")


def mapping(value: Any, where: str) -> Mapping[Any, Any]:
    """Return a mapping; nothing is an empty one. Raises ConfigError for anything else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping, got {value!r}")
    return value


def section(content: Mapping[str, Any], key: str, where: str) -> Mapping[Any, Any]:
    """Return the mapping under `key`. Raises ConfigError if it is something else."""
    return mapping(content.get(key), f"{where}: {key}")


def named_settings(content: Mapping[str, Any], key: str, cls: type, where: str) -> dict[str, dict[str, Setting]]:
    """Return the settings of class `cls` under each name in section `key`. Raises ConfigError."""
    found = {
        str(name): settings_of(mapping(entry, f"{where}: {key}.{name}"), cls, f"{where}: {key}.{name}")
        for name, entry in section(content, key, where).items()
    }
    if not found:
        raise ConfigError(f"{where}: {key}: expected at least one, a name and its settings each")
    return found


def whole_numbers(value: Any, where: str) -> tuple[int, ...]:
    """Return a list of at least one whole number. Raises ConfigError for anything else."""
    if not isinstance(value, list) or not value or not all(type(entry) is int for entry in value):
        raise ConfigError(f"{where}: expected a list of whole numbers, got {value!r}")
    return tuple(value)


def slug(text: str) -> str:
    """Return `text` as part of a folder's name."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-")
