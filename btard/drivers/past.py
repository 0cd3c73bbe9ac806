"""What the peers of a process keep of past steps, and how a step begins and ends for it: the same for all drivers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from btard.drivers.history import ParameterHistory
from btard.drivers.trail import State, Tensors, Trail
from btard.protocol.collusion import Collusion
from btard.protocol.effects import Losses, Measure
from btard.protocol.peer import Peer
from btard.task import PARAMETERS, never, sharing


class Past:
    """`history` is for gradients of past steps, `trail` for going back; `collusion` is what attackers remember."""

    def __init__(self, history: ParameterHistory, trail: Trail, collusion: Collusion | None = None) -> None:
        self.history, self.trail, self.collusion = history, trail, collusion

    def begin(self, peers: Iterable[Peer], state: State) -> int:
        """Record that the next step of `peers` begins with `state`, which must not change before it is over.

        Returns its number. The ledger is that of the first honest peer.
        """
        peers = list(peers)
        first = min(peers, key=lambda peer: (peer.behaviour.byzantine, peer.id))
        # Once the last peer that looks far back is gone, nobody needs a long history any more.
        deep = any(peer.behaviour.lookback > 1 for peer in peers)
        workers = sharing(first.active, first.assignments)
        self.history.record(first.t, state.agreed[PARAMETERS], workers, deep=deep)
        self.trail.record(first.t, first.ledger.entries, state)
        return first.t

    def at(self, step: int) -> torch.Tensor:
        """x^step [d]; LookupError if it is no longer kept."""
        return self.history.at(step, self.trail.step)

    def agreed(self, step: int) -> Tensors | None:
        """What was agreed on at the beginning of `step`, if that is the current one or kept; else None."""
        return self.trail.agreed(step)

    def measure(self, asked: Mapping[int, Measure], too_late: Callable[[], bool] = never) -> dict[int, Losses]:
        """Peer -> the losses that it asks for; it is missing if a state is lost, or they would be too late."""
        found = {request: self.trail.measure(request, too_late) for request in set(asked.values())}
        return {i: losses for i, request in asked.items() if (losses := found[request]) is not None}

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold."""
        remembered = {} if self.collusion is None else self.collusion.state()
        return self.history.state() | self.trail.state() | remembered

    def restore(self, tensors: Tensors, workers: Mapping[int, int]) -> None:
        """Restore what `state` returned, from among other tensors, and the known `workers` of past steps."""
        self.history.restore(tensors, workers)
        self.trail.restore(tensors)
        if self.collusion is not None:
            self.collusion.restore(tensors)
