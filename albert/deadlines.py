"""How long a peer waits for the others before it goes on without them (section 8: slow is not malicious)."""

from __future__ import annotations

from dataclasses import dataclass

TENSOR_PHASES = frozenset({"part", "aggregate", "recover", "disclose", "evidence", "bring_up", "forward"})
"""Exchanges of parts and aggregates: their messages take as long as the network needs for the gradient."""


@dataclass(frozen=True)
class Deadlines:
    """All in seconds. The waits of a step grow from phase to phase (`albert.network.rounds` says why)."""

    compute: float
    """How long a gradient may take, a validator's too."""
    phase: float
    """How long the first phase of a step waits, after my own gradient is there, for those who are slower."""
    message: float
    """What a short message may take, there and through the other peer's queue."""
    transfer: float
    """What the parts or aggregates of one phase may take."""
    give_up: float
    """How long a peer may be unreachable before it is no longer waited for."""

    def allowance(self, phase: str) -> float:
        """By how much the wait of `phase` is longer than that of the phase before it."""
        kind = phase.partition("/")[0]
        if kind == "vote":  # judges recompute before they vote
            return self.compute + self.message
        return self.transfer if kind in TENSOR_PHASES and phase.count("/") <= 1 else self.message
