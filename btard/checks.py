"""How a class of settings rejects a value: in one line, with the field that is to blame."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_type_hints

field_types: Callable[[type], dict[str, Any]] = functools.cache(get_type_hints)
"""Field -> type of a class of settings; a grid builds thousands of settings of the same few classes."""


class FieldError(ValueError):
    """A check of a dataclass failed for `field`; the code that builds the dataclass knows where its value came from.

    `message` goes on after the field's name: "must be > 0, got -1; ...". `beside` names another field that the rule
    depends on: it is to blame where `field` has its default. `owner` stands before the field's name in the text.
    """

    def __init__(self, field: str, message: str, *, beside: str = "", owner: str = "") -> None:
        super().__init__(f"{owner}{field} {message}")
        self.field, self.message, self.beside = field, message, beside


def require(holds: bool, name: str, rule: str, value: object, fix: str, *, beside: str = "") -> None:
    """Raise FieldError unless the check of field `name` holds: the rule, the value that came, what to do."""
    if not holds:
        shown = "null" if value is None else value
        raise FieldError(name, f"must be {rule}, got {shown}; {fix}", beside=beside)
