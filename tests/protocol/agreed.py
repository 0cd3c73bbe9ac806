"""One phase of broadcasts, from what a peer says to what all agree on."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, TypeVar

from btard.protocol.effects import Broadcast, Effect
from btard.protocol.hearing import Heard, Hearing
from btard.protocol.peer import Peer
from btard.protocol.record import StepRecord
from btard.protocol.signed import Signed

T = TypeVar("T")


def compared(peer: Peer, record: StepRecord, phase: str, message: Signed, limit: int) -> Generator[Effect, Any, Heard]:
    """What `peer` has heard, with what all agree on."""
    [heard] = yield from peer.speak(record, phase, [Broadcast(phase, message, {}, limit, 0)])
    yield from peer.agree(record, heard)
    return heard


def agreed(peer: Peer, record: StepRecord, phase: str, message: Signed, limit: int) -> Generator[Effect, Any, Hearing]:
    """What `peer` has heard once all agree."""
    heard = yield from compared(peer, record, phase, message, limit)
    assert heard.agreed is not None
    return heard.agreed


def advance(
    running: dict[int, Generator[Effect, Any, T]], answers: Mapping[int, Any], heard: dict[int, T]
) -> dict[int, Any]:
    """Give all that are `running` their answers: the next effects. What those have heard that end goes to `heard`."""
    effects: dict[int, Any] = {}
    for i, generator in list(running.items()):
        try:
            effects[i] = generator.send(answers[i])
        except StopIteration as stop:
            heard[i] = stop.value
            del running[i]
    return effects
