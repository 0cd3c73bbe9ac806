"""How long a peer waits for the others before it continues without them: slow is not malicious.

These are the waits of a step, and `ANSWER`, which several files share; other waits stand beside their use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from btard.checks import require

ANSWER = 10.0
"""Seconds in which a peer must accept a stream, and give a short answer on it: a hello, a list, a request noted."""


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """How long peers wait for each other, in seconds."""

    compute: float = 300.0
    """How long a gradient, or the losses of one earlier state, may take. Raise it if honest peers are often absent from
    a step."""
    phase: float = 30.0
    """How long peers that have their gradient wait for slower ones. Raise it if the peers' speeds differ a lot."""
    message: float = 1.0
    """How long a message may travel, in addition to the time that its bytes take. Raise it if peers are silent to each
    other over links with long delays."""
    uplink: float = 8.0
    """What the line of every peer carries each way, in Mbit/s, after what networks and other programs take of it. Lower
    it if a peer's line is slower or shared, such as one behind a relay: otherwise the peer is silent in phases that
    carry tensors, or its evidence comes too late. A wait is as long as this rate needs for the bytes of the phase."""
    give_up: float = 10.0
    """How long a peer may be unreachable before a phase continues without it. Raise it if links break for moments."""
    gather: float = 600.0
    """How long the first peers wait for all to come, and returning peers for the others' state. Raise it if
    machines are started by hand, or if a step with the state after it takes longer."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            require(
                0 < value < math.inf, item.name, "> 0 and finite", value, "the defaults are for T4 GPUs and 1 Gbit/s"
            )

    def seconds(self, load: int) -> float:
        """Seconds that this many bytes take on the slowest line allowed for."""
        return 8e-6 * load / self.uplink

    def patience(self, d: int) -> float:
        """How long a peer that asks for the state waits for the next step to begin, and for the state. `d`: parameters.

        The parameters come with what the optimizer keeps, and with what the step before left.
        """
        return self.compute + 4 * self.phase + self.seconds(4 * 4 * d)

    def loading(self, d: int) -> float:
        """How long all wait for peers that lack the state gone back to, and load it from others that have it."""
        return self.phase + self.seconds(4 * 4 * d)

    def allowance(self, phase: str, load: int, gradients: int = 0, *, answered: bool = False) -> float:
        """How much longer the wait of `phase` is than that of the phase before (`btard.swarm.rounds` says why).

        From settings and agreed state alone: `load` is the phase's (`btard.protocol.loads`), `gradients` are how many a
        judge may have computed before it, or how many states were measured. With the former the verdicts take less than
        one more. `answered`: what is said in the phase may be answered in it.
        """
        work = gradients + (phase.partition("/")[0] == "vote")
        return (2 if answered else 1) * self.message + work * self.compute + self.seconds(load)
