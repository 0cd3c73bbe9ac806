"""Pure functions that several peers of one process call with the same arguments: evaluated once, then remembered.

It changes nothing but the cost. What a peer on a machine of its own has to pay is seen under `nothing_remembered`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, wraps
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

_caches: list[Any] = []
_enabled = True


def remembered(maxsize: int) -> Callable[[F], F]:
    """Decorates a pure function of hashable arguments: its last `maxsize` results are kept. Safe to call in threads."""

    def decorate(function: F) -> F:
        cached = lru_cache(maxsize)(function)
        _caches.append(cached)

        @wraps(function)
        def call(*args: Any) -> Any:
            return cached(*args) if _enabled else function(*args)

        return cast(F, call)

    return decorate


@contextmanager
def nothing_remembered() -> Iterator[None]:
    """Inside, every call computes anew, so that each peer does all of its own work. For measurements and tests."""
    global _enabled
    before, _enabled = _enabled, False
    for cached in _caches:
        cached.cache_clear()
    try:
        yield
    finally:
        _enabled = before
