"""Certificates that peers show each other beside their frames: each on a stream of its own, as the answer to a request.

A peer without a certificate says something in the first round of relays. That is its request. A member that has passed
the round by delivers its certificate at once, so it is there within two messages. In the sender's stream of frames it
would be too late: it would stand behind the frames of later phases, which the other peer does not read before it is in
them.

To ask with a message of its own would be later, or in vain: only after one message more does a peer know who has passed
by, and where a liar has denied its signature to all nobody has.

Nothing piles up. A peer keeps the certificates of two steps. It delivers one to each member and phase, and to one
member only the latest at a time. It takes one from each member, of the phase at hand, within a certificate's size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from btard.drivers.letters import Pieces
from btard.swarm import frames
from btard.swarm.cancel import cancel
from btard.swarm.deadlines import ANSWER
from btard.swarm.links import BROKEN, FIRST_PAUSE, LONGEST_PAUSE, Refused
from btard.swarm.outbox import STEPS_KEPT, Position

Deliver = Callable[[Position, Pieces], Awaitable[None]]
"""Brings a peer the certificate of the phase whose first round is at this position. Errors: Refused; `BROKEN`."""


class Certificates:
    """Those that this peer shows, and those that it is shown. `changed` is called when one has come.

    `spawn` starts a task. All methods are for the network's thread.
    """

    def __init__(
        self, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]], changed: Callable[[], None]
    ) -> None:
        self._spawn, self._changed = spawn, changed
        self.asked: frozenset[int] = frozenset()
        """Members that may show this peer one now."""
        self.came: dict[int, bytearray] = {}
        """Member -> what it shows, unverified."""
        self._at: Position | None = None
        self._limit = 0
        self._coming: dict[int, asyncio.Task[Any]] = {}
        self._mine: dict[Position, tuple[frozenset[int], Pieces]] = {}
        """First round -> the members that may need it, and the certificate."""
        self._shown: set[tuple[int, Position]] = set()
        self._seen: dict[int, Position] = {}
        self._deliver: dict[int, Deliver] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    # What this peer is shown.

    def want(self, at: Position, members: Iterable[int], limit: int) -> None:
        """From now on take one of each of `members`, of at most `limit` bytes; this peer is in the round at `at`."""
        self._at, self.asked, self._limit, self.came = at, frozenset(members), limit, {}

    def close(self) -> dict[int, bytearray]:
        """Take none any more; returns those that have come, by member."""
        came, self._at, self.asked, self.came = self.came, None, frozenset(), {}
        return came

    async def take(self, member: int, at: Position, size: int, reader: frames.Source) -> None:
        """Read the `size` bytes that `member` shows. Errors: Refused, unless it is asked for just that."""
        if at != self._at or member not in self.asked or member in self.came or not 0 <= size <= self._limit:
            raise Refused("certificate: not asked for")
        task = asyncio.current_task()
        assert task is not None
        if (before := self._coming.get(member)) is not None:
            before.cancel()  # its sender has lost it
        self._coming[member] = task
        try:
            body = await asyncio.wait_for(frames.receive_body(reader, size), ANSWER)
        finally:
            if self._coming.get(member) is task:
                del self._coming[member]
        if at == self._at:
            self.came[member] = body
            self._changed()

    # What this peer shows.

    def reach(self, peer: int, deliver: Deliver) -> None:
        """`peer` can be shown something, by `deliver`."""
        self._deliver[peer] = deliver

    async def leave(self, peer: int) -> None:
        """Show `peer` nothing more."""
        self._deliver.pop(peer, None)
        self._seen.pop(peer, None)
        if (task := self._tasks.pop(peer, None)) is not None:
            await cancel(task)

    def show(self, at: Position, members: Iterable[int], certificate: Pieces) -> None:
        """Show `certificate` to each of `members` that says something in the first round at `at`."""
        self._mine = {p: kept for p, kept in self._mine.items() if p[0] > at[0] - STEPS_KEPT}
        self._mine[at] = frozenset(members), certificate
        self._shown = {(peer, p) for peer, p in self._shown if p in self._mine}
        for peer, position in tuple(self._seen.items()):
            self.seen(peer, position)

    def seen(self, peer: int, position: Position) -> None:
        """The last frame that `peer` began to send is the one at `position`."""
        if peer not in self._deliver:
            return
        self._seen[peer] = position
        members, certificate = self._mine.get(position, ((), ()))
        if peer in members and (peer, position) not in self._shown:
            self._shown.add((peer, position))
            if (before := self._tasks.get(peer)) is not None:
                before.cancel()  # it needs that one no longer
            self._tasks[peer] = self._spawn(self._bring(peer, position, certificate))

    async def restart(self) -> None:
        """Forget everything: this peer begins anew at another place."""
        self.close()
        self._mine, self._shown, self._seen = {}, set(), {}
        tasks, self._tasks = self._tasks, {}
        await cancel(*tasks.values())

    async def _bring(self, peer: int, at: Position, certificate: Pieces) -> None:
        """Deliver it, again if a stream breaks, for as long as `peer` can need it."""
        pause = FIRST_PAUSE
        while self._seen.get(peer) == at and at in self._mine:
            try:
                return await self._deliver[peer](at, certificate)
            except Refused:
                return
            except BROKEN:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
