"""Bad links and slow peers for simulations. Named streams decide what is lost or late, so runs can be repeated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from btard.drivers.loop import Clock
from btard.protocol.hashing import stream


@dataclass(frozen=True)
class Links(Clock):
    """How reliable the simulated network is, equally between all peers, honest or not.

    What goes from one peer to another is acknowledged and sent again, up to `attempts` times before the phase ends. A
    broadcast is sent `repeats` times without waiting for an answer: the relays of the protocol make up for what is lost
    to some peers. What is lost to all of them was never said, and then its sender counts as silent.

    >>> import btard
    >>> config = btard.ProtocolConfig(peers=5, byzantine=1, run_id="bad links")
    >>> driver = btard.LocalDriver(config, btard.QuadraticTask(8), links=btard.Links(loss=0.05, slow=0.1))
    """

    loss: float = 0.0
    """Chance that one sending of a message gets lost on the way."""
    repeats: int = 3
    """How often a broadcast is sent; a peer misses it with chance loss ** repeats."""
    attempts: int = 12
    """How often an acknowledged transfer is tried; all of them are lost with chance loss ** attempts."""
    slow: float = 0.0
    """Chance that a peer is not ready with its gradient in a step: it misses the commit phase."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("loss", "slow"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"links: {name} must be >= 0 and < 1, got {getattr(self, name)}")
        for name in ("repeats", "attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"links: {name} must be >= 1, got {getattr(self, name)}")

    def lost(self, step: int, phase: str, peers: int, *, acknowledged: bool) -> np.ndarray | None:
        """Which messages of the phase get lost, [sender, recipient] bool; None if none can. Nobody loses its own."""
        chance = self.loss ** (self.attempts if acknowledged else self.repeats)
        if chance == 0:
            return None
        drawn: np.ndarray = stream("links", self.seed, step, phase).random((peers, peers)) < chance
        np.fill_diagonal(drawn, False)
        return drawn

    def late(self, step: int, peer: int) -> bool:
        return self.slow > 0 and float(stream("slow", self.seed, step, peer).random()) < self.slow
