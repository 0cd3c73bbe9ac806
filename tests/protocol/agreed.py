"""One phase of broadcasts, from what a peer says to what all agree on."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from btard.protocol.effects import Broadcast, Effect
from btard.protocol.hearing import Heard, Hearing
from btard.protocol.messages import Signed
from btard.protocol.peer import Peer
from btard.protocol.record import StepRecord


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
