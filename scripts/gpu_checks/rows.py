"""What a section gets and what it gives: a device with a time limit, and findings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

T = TypeVar("T")
NO_TIME = "not run: no time left"


@dataclass(frozen=True)
class Row:
    """One finding, for people in words and for programs in numbers."""

    what: str
    found: str
    good: bool | None = None
    """Whether it is as it must be; None where it may be anything."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """JSON values; times are in seconds."""

    @property
    def mark(self) -> str:
        return "" if self.good is None else "ok" if self.good else "BAD"


@dataclass(frozen=True)
class Setting:
    """Where a section computes, whether its sizes are tiny, and until when by `time.perf_counter` it may begin more."""

    device: str
    tiny: bool
    until: float

    @property
    def left(self) -> float:
        """Seconds until then."""
        return self.until - time.perf_counter()

    def shares(self, items: Sequence[T]) -> Iterator[tuple[T, Setting]]:
        """Each item with an equal share of the time that is left when its turn comes; of tiny sizes, with all of it."""
        for done, item in enumerate(items):
            waiting = 1 if self.tiny else len(items) - done
            yield item, replace(self, until=time.perf_counter() + self.left / waiting)
