"""What the Byzantine peers of a cohort share: who they are, a seed, and the honest gradients of the present step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import torch

from btard.protocol.hashing import stream

T = TypeVar("T")


class Collusion:
    """Common knowledge of `members` (peer ids) in a cohort of `peers`. `seed` names their random streams.

    A driver calls `observe` as soon as the honest gradients of a step exist, before any attacker has to act.
    """

    def __init__(self, members: frozenset[int], peers: int, seed: int = 0) -> None:
        if not members <= set(range(peers)):
            raise ValueError(f"Byzantine peers {sorted(members)} are not all among the {peers} peers")
        self.members, self.peers, self.seed = members, peers, seed
        self.step = -1
        self._rows: dict[int, torch.Tensor] = {}
        self._shared: dict[Hashable, object] = {}

    def observe(self, step: int, honest: Mapping[int, torch.Tensor]) -> None:
        """Take note of the honest gradients [d] of `step`, by peer; what was shared about earlier steps is dropped."""
        self.step, self._rows, self._shared = step, dict(honest), {}

    @property
    def honest_peers(self) -> tuple[int, ...]:
        return tuple(sorted(self._rows))

    def honest(self) -> torch.Tensor:
        """The honest gradients [h, d] of the present step, in the order of `honest_peers`. One copy per step."""
        if not self._rows:
            raise RuntimeError("no honest gradient was observed: this attack needs a driver that shows them")
        return self.shared("honest", lambda: torch.stack([self._rows[peer] for peer in self.honest_peers]))

    def shared(self, name: Hashable, make: Callable[[], T]) -> T:
        """`make()`, called once per step and name: attackers that send the same vector compute it once."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]  # type: ignore[return-value]

    def stream(self, *names: str | int) -> np.random.Generator:
        """A random stream that all members share."""
        return stream("collusion", self.seed, *names)
