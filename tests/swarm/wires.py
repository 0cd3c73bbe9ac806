"""Streams that a test feeds, and links that follow them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

from btard.protocol.behaviour import HONEST
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity, Roster
from btard.protocol.peer import Peer
from btard.swarm import frames
from btard.swarm.ends import Ends
from btard.swarm.links import Link
from btard.swarm.outbox import Position


class Wire:
    """Streams that the test feeds; `dialled` are the positions that they were opened at."""

    def __init__(self) -> None:
        self.dialled: list[Position] = []
        self.readers: list[asyncio.StreamReader] = []
        self.opened = asyncio.Event()

    async def dial(self, at: Position) -> tuple[asyncio.StreamReader, Any]:
        self.dialled.append(at)
        self.readers.append(asyncio.StreamReader())
        self.opened.set()
        return self.readers[-1], Nobody()

    async def redialled(self, count: int) -> asyncio.StreamReader:
        while len(self.readers) < count:
            self.opened.clear()
            await asyncio.wait_for(self.opened.wait(), 5)
        return self.readers[count - 1]


class Nobody:
    """A writer whose bytes go nowhere."""

    def __init__(self) -> None:
        self.bytes = b""

    def write(self, data: Any) -> None:
        self.bytes += bytes(data)

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass


def nothing_said() -> Ends:
    config = ProtocolConfig(peers=3, byzantine=1, run_id="links")
    identities = [Identity.from_seed("links", peer) for peer in range(3)]
    return Ends(Peer(0, identities[0], Roster(tuple(i.public_key for i in identities)), config, 10, HONEST))


async def frame(step: int, number: int, body: bytes, phase: str = "phase") -> bytes:
    said = Nobody()
    await frames.send(said, (step, number, phase, len(body)), [body])  # type: ignore[arg-type]
    return said.bytes


@asynccontextmanager
async def following(*links: Link) -> AsyncIterator[list[asyncio.Task[None]]]:
    """The links follow their peers meanwhile, each in a task."""
    tasks = [asyncio.ensure_future(link.follow()) for link in links]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()


def run(test: Awaitable[None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))  # type: ignore[arg-type]


async def all_read(reader: asyncio.StreamReader) -> None:
    """Give whoever reads all the time it needs, if it reads on."""
    before = None
    while (left := len(reader._buffer)) != before:  # type: ignore[attr-defined]
        before = left
        for _ in range(50):
            await asyncio.sleep(0)
