"""What another peer says to this one: a stream of frames, read in order, and reopened where it broke off."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from hivemind.p2p import P2PDaemonError

from btard.protocol import wire
from btard.protocol.wire import Malformed
from btard.swarm import frames
from btard.swarm.ends import OVER
from btard.swarm.outbox import Position

HEADER = 512
"""Largest size of a frame's header in bytes."""
AHEAD, AHEAD_TOTAL = 2**16, 2**20
"""Bytes of one frame, and of all frames of a peer, that are read before anybody asks for them, or after that."""
FRAMES_AHEAD = 256
"""Number of frames that are read before anybody asks for them; a step among many colluders has some hundred."""
BESIDE = 16
"""Frames that belong to no phase and are read between two calls of `want`; a step has two of them."""
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds between two attempts to reach a peer; they double each time."""
BROKEN = (P2PDaemonError, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, Malformed)
"""What ends a stream to another peer that may be there again at the next attempt."""

Dial = Callable[[Position], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Refused(Exception):
    """The other side does not admit this peer: why, in its own words."""

    @classmethod
    def by(cls, answer: Sequence[object]) -> Refused:
        """The refusal in `answer`, made fit to be printed."""
        return cls(wire.shown(answer[1], 2000) if len(answer) > 1 else "refused without a reason")


@dataclass(frozen=True)
class Frame:
    """What a peer said in a phase; `body` is None if it had nothing to say to this one, or said more than allowed."""

    phase: str
    body: bytearray | None


class Link:
    """Follows one peer from position `at` on. `changed` is called whenever there is something new.

    `over` is given each word that a step is over, of at most `over_limit` bytes, as soon as it is there, wherever I am.

    All methods are for the network's thread.
    """

    def __init__(
        self,
        dial: Dial,
        at: Position,
        changed: Callable[[], None],
        over: Callable[[bytearray], None] = lambda body: None,
        over_limit: Callable[[], int] = lambda: AHEAD,
    ) -> None:
        self._dial, self._changed, self._over, self._over_limit = dial, changed, over, over_limit
        self.at = at
        """The position wanted next: frames before it are skipped."""
        self.position: Position | None = None
        """How far the other side is known to be: the last frame that it began to send."""
        self.refusal: str | None = None
        self.ahead_of_me: int | None = None
        """The oldest step that the other side still has, if that is past the wanted position."""
        self.down_since: float | None = time.monotonic()
        self._frames: dict[Position, Frame] = {}
        self._limit: int | None = None
        self._beside = self._past = 0
        self._failures = self._failures_then = 0
        self._wanted = asyncio.Event()
        self._wake = asyncio.Event()  # begin anew at another place
        self._hurry = asyncio.Event()  # no time for pauses
        self._reading: asyncio.Task[None] | None = None

    def want(self, at: Position, limit: int) -> None:
        """Forget what came before `at`, and read the frame at `at` if it has at most `limit` bytes."""
        self.at, self._limit = at, limit
        self._frames = {p: frame for p, frame in self._frames.items() if p >= at}
        self._beside = self._past = 0
        self._wanted.set()
        self._failures_then = self._failures
        if self.down_since is not None:
            self._hurry.set()

    def frame(self) -> Frame | None:
        """The frame at `at`, once it is there."""
        return self._frames.get(self.at)

    def restart(self, at: Position) -> None:
        """Follow from `at` on, whatever came before."""
        self.at, self._frames, self.position, self.ahead_of_me = at, {}, None, None
        if self._reading is not None:
            self._reading.cancel()  # at once: a frame that it still kept would be taken for the one before the next
        self._wake.set()
        self._hurry.set()

    def down_for(self) -> float:
        """Seconds since the peer became unreachable, if the last try, after `want`, failed too; else 0."""
        if self.down_since is None or self._failures == self._failures_then:
            return 0.0
        return time.monotonic() - self.down_since

    async def follow(self) -> None:
        """Read forever."""
        pause = FIRST_PAUSE
        while True:
            writer = None
            try:
                self._wake.clear()
                self._hurry.clear()
                first = self._next()
                reader, writer = await self._dial(first)
                self.down_since, self.refusal, pause = None, None, FIRST_PAUSE
                self._changed()
                if not self._wake.is_set():
                    self._reading = asyncio.ensure_future(self._read(reader, first))
                    try:
                        await asyncio.wait({self._reading})
                    finally:
                        self._reading.cancel()
                    if not self._reading.cancelled():
                        self._reading.result()
                await asyncio.sleep(FIRST_PAUSE)
                continue
            except Refused as refused:
                self.refusal, self.down_since = str(refused), None
            except BROKEN:
                self.down_since = self.down_since or time.monotonic()
                self._failures += 1
            finally:
                if writer is not None:
                    writer.close()
            self._changed()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _next(self) -> Position:
        known = [p for p in self._frames if p >= self.at]
        return (max(known)[0], max(known)[1] + 1) if known else self.at

    async def _read(self, reader: asyncio.StreamReader, first: Position) -> None:
        """Read frames from `first` on until the stream ends; returns where it must be reopened, at the next frame.

        It reads at most `AHEAD_TOTAL` bytes of frames that I am past between two calls of `want`, counting each header
        at its largest: a stream that is reopened begins behind them. Errors: Malformed for frames out of order.
        """
        while True:
            fields = await frames.receive(reader, HEADER, "frame")
            if fields[:1] == ["gone"]:
                self.ahead_of_me = wire.check_int(fields[-1], "step")
                self._changed()
                await self._count_beside()
                continue
            position, phase, size = _header(fields)
            if position < first:
                raise Malformed(f"frame: {position} where {first} is next")
            first = position[0], position[1] + 1
            self.position = position
            self._changed()
            if phase == OVER and 0 <= size <= self._over_limit():
                self._over(await frames.receive_body(reader, size))
                self._changed()
                await self._count_beside()
                continue
            if position < self.at:
                self._past += HEADER + max(0, size)
                if self._past > AHEAD_TOTAL:
                    return
                await frames.receive_body(reader, max(0, size))
                continue
            if size > AHEAD or size + self._held() > AHEAD_TOTAL or len(self._frames) >= FRAMES_AHEAD:
                limit = await self._until_wanted(position)
                if limit is None:
                    return  # passed by meanwhile
                if size > limit:
                    self._keep(position, Frame(phase, None))
                    return
            said = await frames.receive_body(reader, size) if size >= 0 else None
            self._keep(position, Frame(phase, said))

    async def _until_wanted(self, position: Position) -> int | None:
        while True:
            if self._limit is not None and self.at == position:
                return self._limit
            if self.at > position:
                return None
            self._wanted.clear()
            await self._wanted.wait()

    async def _count_beside(self) -> None:
        self._beside += 1
        while self._beside >= BESIDE:
            self._wanted.clear()
            await self._wanted.wait()

    def _held(self) -> int:
        return sum(len(frame.body) for frame in self._frames.values() if frame.body is not None)

    def _keep(self, position: Position, frame: Frame) -> None:
        self._frames.setdefault(position, frame)
        self._changed()


def _header(fields: list[object]) -> tuple[Position, str, int]:
    step, number, phase, size = wire.check_fields(fields, "frame", 4)
    if not isinstance(phase, str) or len(phase) > 64 or type(size) is not int:
        raise Malformed("frame: expected a phase and a size")
    return (wire.check_int(step, "step"), wire.check_int(number, "phase")), phase, size
