"""How long a peer waits for the others before it goes on without them: slow is not malicious."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from btard.checks import require

TENSOR_PHASES = frozenset({"part", "aggregate", "recover", "disclose", "evidence", "pass", "bring_up", "forward"})
"""Exchanges of parts and aggregates: their messages take as long as the network needs for the gradient."""


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How long peers wait for each other, in seconds."""

    compute: float = 300.0
    """How long a gradient may take. Raise it if honest peers are often absent from a step."""
    phase: float = 30.0
    """How long those who have their gradient wait for the slower ones. Raise it if the peers' speeds differ a lot."""
    message: float = 1.0
    """What a short message may take. Raise it if peers are silent to each other over slow links."""
    transfer: float = 30.0
    """What a gradient's way through the network may take, each way. Raise it if peers are silent in phases that carry
    parts, or behind relays: bytes of the gradient over what the slowest link carries in a second, at least."""
    give_up: float = 10.0
    """How long a peer may be unreachable before a phase goes on without it. Raise it if links break for moments."""
    gather: float = 600.0
    """How long the first peers wait for all to come, and those who come back for the others' state. Raise it if
    machines are started by hand, or if a step with the state after it takes longer."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            require(
                0 < value < math.inf, item.name, "> 0 and finite", value, "the defaults are for T4 GPUs and 1 Gbit/s"
            )

    def allowance(self, phase: str) -> float:
        """By how much the wait of `phase` is longer than that of the phase before it (`btard.swarm.rounds`: why)."""
        kind = phase.partition("/")[0]
        if kind in ("lacking", "vote"):  # judges recompute before they say anything about the evidence
            return self.compute + self.message
        return self.transfer if kind in TENSOR_PHASES and phase.count("/") <= 1 else self.message
