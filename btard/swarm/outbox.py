"""What this peer has said in the current step and the one before, in order, for its followers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from btard.drivers.letters import Pieces

Position = tuple[int, int]
"""(step, number of the phase within it): every peer in a step counts its phases in the same way."""

STEPS_KEPT = 2
AGAIN = 3
"""So many times its bytes a follower may be sent of a frame again at once: its stream may have broken off within it."""
SHARE = 4
"""All that is sent again after that takes at most this part of the line."""


@dataclass(frozen=True)
class Said:
    """The frame of one phase: `body` for everybody except those in `special`; None is nothing."""

    phase: str
    body: Pieces | None
    special: Mapping[int, Pieces | None] = field(default_factory=dict)

    def to(self, recipient: int) -> Pieces | None:
        return self.special.get(recipient, self.body)


class Gone(Exception):
    """The requested frame is no longer kept; `step` is the oldest that is."""

    def __init__(self, step: int) -> None:
        super().__init__(f"frames before step {step} are no longer kept")
        self.step = step


class Outbox:
    """Frames by position. For the network's thread."""

    def __init__(self) -> None:
        self._said: dict[Position, Said] = {}
        self._changed = asyncio.Condition()
        self._ended: dict[int, int] = {}
        """Step -> how many phases it had."""
        self.step = 0

    async def say(self, position: Position, said: Said) -> None:
        """Add the frame of this peer's next phase."""
        async with self._changed:
            self.step = position[0]
            self._said[position] = said
            for old in [p for p in self._said if p[0] <= self.step - STEPS_KEPT]:
                del self._said[old]
            self._changed.notify_all()

    async def finish(self, step: int, phases: int) -> None:
        """`step` is over after this many phases: the next frame is the next step's first."""
        async with self._changed:
            self._ended = {s: n for s, n in self._ended.items() if s > step - STEPS_KEPT} | {step: phases}
            self._changed.notify_all()

    async def restart(self, step: int) -> None:
        """Forget everything: this peer continues at `step`, with a state that it was given."""
        async with self._changed:
            self._said, self._ended, self.step = {}, {step - 1: 0}, step
            self._changed.notify_all()

    async def after(self, position: Position, timeout: float) -> tuple[Position, Said] | None:
        """The frame at `position`, or the first one after it where this peer said nothing; None after `timeout`.

        Errors: Gone if the frame is no longer kept.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        async with self._changed:
            while True:
                step, number = position
                if step in self._ended and number >= self._ended[step]:
                    position = (step + 1, 0)
                    continue
                ahead = [p for p in self._said if p >= position]
                if ahead and (min(ahead) == position or min(ahead)[0] == step):
                    return min(ahead), self._said[min(ahead)]
                oldest = min((p[0] for p in self._said), default=self.step)
                if step < oldest:
                    raise Gone(oldest)
                left = deadline - asyncio.get_running_loop().time()
                if left <= 0:
                    return None
                try:
                    await asyncio.wait_for(self._changed.wait(), left)
                except asyncio.TimeoutError:
                    continue


class Served:
    """How much each follower was sent of each frame that is still kept, so that nobody takes the line for itself."""

    def __init__(self) -> None:
        self._sent: dict[bytes, Counter[Position]] = {}

    def note(self, key: bytes, position: Position, sent: int) -> None:
        """The holder of `key` was sent so many bytes of the frame at `position`: all of it, or until it broke off."""
        self._sent.setdefault(key, Counter())[position] += sent

    def pause(self, key: bytes, position: Position, size: int, seconds: float, followers: int) -> float:
        """Seconds to wait before the holder of `key` is sent the frame at `position`, of `size` bytes.

        `seconds`: what these take of the line. Of all `followers` together, what they are sent beyond 1 + AGAIN times
        takes 1 / SHARE of it.
        """
        return SHARE * followers * seconds if self.sent(key, position) > AGAIN * size else 0.0

    def sent(self, key: bytes, position: Position) -> int:
        """Bytes that the holder of `key` was sent of the frame at `position`."""
        return self._sent.get(key, Counter())[position]

    def forget(self, followers: Container[bytes], step: int) -> None:
        """All but what `followers` were sent of the frames that are kept in `step`."""
        self._sent = {
            key: Counter({at: count for at, count in sent.items() if at[0] > step - STEPS_KEPT})
            for key, sent in self._sent.items()
            if key in followers
        }
