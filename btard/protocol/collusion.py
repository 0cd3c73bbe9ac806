"""What the Byzantine peers of a cohort share: who they are, a seed, and the honest gradients of the present step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from threading import RLock
from typing import TypeVar

import numpy as np
import torch

from btard.protocol.hashing import stream

T = TypeVar("T")


class Collusion:
    """Common knowledge of `members` (peer ids) in a cohort of `peers`. `seed` names their random streams.

    `tensors`: how many numbers each tensor of the model has, in the order of the gradient; empty where nobody said.
    A driver calls `observe` as soon as the honest gradients of a step exist, before any attacker has to act.

    >>> import btard
    >>> sorted(btard.Collusion(frozenset({6, 7}), peers=8, seed=1).members)
    [6, 7]
    """

    def __init__(self, members: frozenset[int], peers: int, seed: int = 0, *, tensors: tuple[int, ...] = ()) -> None:
        if not members <= set(range(peers)):
            raise ValueError(f"Byzantine peers {sorted(members)} are not all among the {peers} peers")
        self.members, self.peers, self.seed, self.tensors = members, peers, seed, tensors
        self.step = -1
        self._rows: dict[int, torch.Tensor] = {}
        self._shared: dict[Hashable, object] = {}
        self._constants: dict[Hashable, object] = {}
        self._watchers: dict[str, Callable[[], None]] = {}
        self.memory: dict[str, torch.Tensor] = {}
        """What the members remember from step to step, by name. Checkpoints hold it, so that a run can resume."""
        self._once = RLock()  # members may work in threads; what one makes can need what another name stands for

    def observe(self, step: int, honest: Mapping[int, torch.Tensor]) -> None:
        """Record the honest gradients [d] of `step`, by peer; what was shared about earlier steps is dropped."""
        self.step, self._rows, self._shared = step, dict(honest), {}
        for look in self._watchers.values():
            look()

    def watch(self, name: str, look: Callable[[], None]) -> None:
        """Call `look()` after each `observe`, replacing one of this name: for code that must see every step.

        A member that validates in a step does not send a gradient, and so computes none of what is `shared`.
        """
        self._watchers[name] = look

    @property
    def honest_peers(self) -> tuple[int, ...]:
        return tuple(sorted(self._rows))

    @property
    def rows(self) -> tuple[torch.Tensor, ...]:
        """The honest gradients [d] in the order of `honest_peers`, not copied: enough for anything row by row."""
        if not self._rows:
            raise RuntimeError("no honest gradient was observed: this attack needs a driver that shows them")
        return tuple(self._rows[peer] for peer in self.honest_peers)

    def honest(self) -> torch.Tensor:
        """The honest gradients [h, d] of the present step, in the order of `honest_peers`. One copy per step."""
        return self.shared("honest", lambda: torch.stack(self.rows))

    def shared(self, name: Hashable, make: Callable[[], T]) -> T:
        """`make()`, called once per step and name: attackers that send the same vector compute it once."""
        with self._once:
            if name not in self._shared:
                self._shared[name] = make()
            return self._shared[name]  # type: ignore[return-value]

    def constant(self, name: Hashable, make: Callable[[], T]) -> T:
        """`make()`, called once per run and name. Checkpoints do not hold it: it must follow from the seed alone."""
        with self._once:
            if name not in self._constants:
                self._constants[name] = make()
            return self._constants[name]  # type: ignore[return-value]

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold: `memory`, under names that nothing else uses."""
        return {f"collusion/{name}": x for name, x in self.memory.items()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state` returned, from a dictionary that may hold other tensors, too."""
        mine = {name: x for name, x in tensors.items() if name.startswith("collusion/")}
        self.memory = {name.removeprefix("collusion/"): x for name, x in mine.items()}

    def stream(self, *names: str | int) -> np.random.Generator:
        """A random stream that all members share."""
        return stream("collusion", self.seed, *names)
