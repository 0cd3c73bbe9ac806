"""Edits of the protocol's source that take out one fix each.

An edit is made while the module is imported (`coverage.install`); no file is changed. A text that is not in the module
exactly once is an error: then the fix has moved, and its switch has to.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """In `module`, `new` instead of `old`."""

    module: str
    old: str
    new: str


@dataclass(frozen=True)
class Switch:
    """What breaks again without the fix, and the edits that remove the fix."""

    breaks: str
    edits: tuple[Edit, ...]


def switch(breaks: str, *edits: tuple[str, str, str]) -> Switch:
    return Switch(breaks, tuple(Edit(f"btard.protocol.{module}", old, new) for module, old, new in edits))
