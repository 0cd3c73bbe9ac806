"""Lines for the people that watch a process of a swarm."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Say = Callable[[str], None]
"""Shows a line to people."""

ONCE = 100
"""Number of things that are said only once. It is limited, because others can invent ever new ones."""

T = TypeVar("T", bound=Hashable)


class Once(Generic[T]):
    """Knows what has been `said`."""

    def __init__(self) -> None:
        self.said: set[T] = set()

    def new(self, what: T) -> bool:
        """Whether `what` is to be said now: not if it was said before, nor after `ONCE` others."""
        if what in self.said or len(self.said) >= ONCE:
            return False
        self.said.add(what)
        return True
