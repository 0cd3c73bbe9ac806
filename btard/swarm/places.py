"""Places for peers that wait for something: each has an owner, and nobody can take another's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from btard.swarm.links import Refused


class Places:
    """At most `each` places for a key, and at most `strangers` for all keys together that are not `known`.

    Keys are made for nothing, so strangers share what they can take: those who are known always find their places.
    """

    def __init__(self, what: str, strangers: int, each: int, known: Callable[[bytes], bool]) -> None:
        self.what, self.strangers, self.each, self.known = what, strangers, each, known
        self._taken: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return self._taken.total()

    @contextmanager
    def of(self, key: bytes) -> Iterator[None]:
        """A place for the holder of `key` until the block ends. Errors: Refused if there is none."""
        if self._taken[key] >= self.each:
            raise Refused(f"{self.what}: {self.each} of your requests are under way; wait for them")
        if not self.known(key):
            others = sum(count for owner, count in self._taken.items() if not self.known(owner))
            if others >= self.strangers:
                raise Refused(f"{self.what}: too many ask at once; ask again later")
        self._taken[key] += 1
        try:
            yield
        finally:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]
