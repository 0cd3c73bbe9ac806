"""The time of one step of a peer: how long it waits in each phase, and when its gradient comes too late."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from btard.drivers.loop import Clock
from btard.protocol.effects import Broadcast, Compare, Exchange, Relay
from btard.swarm.deadlines import Deadlines


class StepClock(Clock):
    """The deadlines of one step. A peer is also late if the others have continued without it."""

    def __init__(self, deadlines: Deadlines, gone_on: Callable[[], bool]) -> None:
        self.deadlines, self.gone_on = deadlines, gone_on
        self.ready_by = math.inf
        self.longest = deadlines.phase
        """Seconds that the wait of the latest phase may take, the longest of the step so far."""
        self._work = 0

    def start(self, phase: str, work: int = 1) -> None:
        self.ready_by = time.monotonic() + self.deadlines.compute
        self._work += 0 if phase == "compute" else work

    def late(self, step: int, peer: int) -> bool:
        return time.monotonic() > self.ready_by or self.gone_on()

    def wait(self, effect: Broadcast | Compare | Exchange) -> float:
        """Seconds to wait for what the others say in the phase of `effect`, which is the next one."""
        answered = isinstance(effect, Relay) and effect.first
        self.longest += self.deadlines.allowance(effect.phase, effect.load, self._work, answered=answered)
        self._work = 0
        return self.longest
