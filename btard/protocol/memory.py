"""Pure functions that several peers of one process call with the same arguments: evaluated once, then remembered.

It changes nothing but the cost. What a peer on a machine of its own has to pay is seen with `Memory(remembers=False)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Remembered(Generic[P, R]):
    """A pure function of hashable arguments. A `Memory` keeps its last `results`; called directly it computes again."""

    def __init__(self, function: Callable[P, R], results: int) -> None:
        self.function, self.results = function, results
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)


def remembered(results: int) -> Callable[[Callable[P, R]], Remembered[P, R]]:
    """Decorates a function of which a memory keeps the last `results`."""
    return lambda function: Remembered(function, results)


class Later(Generic[R]):
    """The value of a pure function of these arguments, computed when somebody looks at it for the first time."""

    __slots__ = ("_args", "_compute", "_value")

    def __init__(self, compute: Callable[..., R], *args: Any) -> None:
        self._compute: Callable[..., R] | None = compute
        self._args = args
        self._value: R

    def look(self) -> R:
        compute = self._compute
        if compute is not None:
            self._value = compute(*self._args)
            self._compute = None  # peers in threads may both have computed it
        return self._value


class Memory:
    """What the peers of one cohort have computed already: `memory(function, *args)` is `function(*args)`.

    A driver makes one and hands it to its peers, which may call it in threads. With `remembers=False` every call
    computes anew, so that each peer does all of its own work.
    """

    def __init__(self, *, remembers: bool = True) -> None:
        self.remembers = remembers
        self._kept: dict[Remembered[Any, Any], Callable[..., Any]] = {}

    def __call__(self, function: Remembered[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if not self.remembers:
            return function.function(*args, **kwargs)
        kept = self._kept.get(function)
        if kept is None:
            kept = self._kept.setdefault(function, lru_cache(function.results)(function.function))
        return kept(*args, **kwargs)

    def later(self, compute: Callable[..., R], *args: Any) -> R | Later[R]:
        """`compute(*args)`, computed when somebody looks at it: for values that are hardly ever needed."""
        return Later(compute, *args) if self.remembers else compute(*args)


NOTHING = Memory(remembers=False)
"""A memory that keeps nothing, for callers that ask once."""
