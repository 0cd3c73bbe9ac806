"""The streams on which others follow a peer: one for each, and a fair share of the line."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from btard.swarm import frames
from btard.swarm.driver import SwarmDriver
from btard.swarm.followers import Followers
from btard.swarm.links import HEADER
from btard.swarm.outbox import AGAIN, SHARE, Outbox, Said, Served
from tests.swarm.cohort import QUICK


class TakesNothing:
    """A writer whose other end does not read."""

    def __init__(self) -> None:
        self.transport, self.aborted, self.begun = self, False, asyncio.Event()

    def write(self, data: Any) -> None:
        self.begun.set()

    async def drain(self) -> None:
        await asyncio.Event().wait()

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.aborted = True


def serves(*keys: bytes) -> tuple[SwarmDriver, Outbox]:
    """A driver of which nothing works but that the holders of `keys` can follow it, and what it has said."""
    driver, outbox = SwarmDriver.__new__(SwarmDriver), Outbox()
    members = {key: i for i, key in enumerate(keys, 1)}
    driver.doors = SimpleNamespace(members=members, add=lambda *door, **only: None)  # type: ignore[assignment]
    driver.rounds = SimpleNamespace(outbox=outbox, links={})  # type: ignore[assignment]
    driver.followers = Followers(driver.doors, driver.rounds, QUICK)
    driver.peer = SimpleNamespace(id=0, active=(0,), probation={}, roster=SimpleNamespace(keys=()))  # type: ignore[assignment]
    driver._linked = {}
    return driver, outbox


def test_who_is_out_keeps_nothing_of_what_it_was_being_sent() -> None:
    """Else strangers that come one after the other, and read nothing, would fill the others' memory."""

    async def test() -> None:
        key, writer = b"key", TakesNothing()
        driver, outbox = serves(key)
        await outbox.say((3, 0), Said("phase", [bytes(2**20)]))
        serving = asyncio.ensure_future(driver.followers._follow(key, [3, 0], None, writer))
        await writer.begun.wait()
        await driver._link()
        await asyncio.sleep(0)
        assert not serving.done()
        driver.doors.members = {}
        await driver._link()
        await asyncio.wait({serving}, timeout=5)
        assert serving.cancelled() and writer.aborted and not driver.followers._streams

    asyncio.run(test())


def test_a_peer_follows_with_one_stream() -> None:
    """Each stream that takes nothing keeps a frame in memory, and what is sent on several of them is sent twice."""

    async def test() -> None:
        key = b"key"
        driver, outbox = serves(key, b"another")
        await outbox.say((3, 0), Said("phase", [bytes(2**20)]))
        writers = [TakesNothing() for _ in range(4)]
        other = TakesNothing()
        serving = [asyncio.ensure_future(driver.followers._follow(b"another", [3, 0], None, other))]
        for writer in writers:
            serving.append(asyncio.ensure_future(driver.followers._follow(key, [3, 0], None, writer)))
            await writer.begun.wait()
        await asyncio.wait(serving[1:-1], timeout=5)
        assert [writer.aborted for writer in (other, *writers)] == [False, True, True, True, False]
        assert len(driver.followers._streams) == 2
        for task in serving:
            task.cancel()
        await asyncio.wait(serving, timeout=5)
        assert not driver.followers._streams

    asyncio.run(test())


def test_who_reads_a_frame_again_and_again_takes_little_of_the_line() -> None:
    served, size, seconds, followers = Served(), 1000, 2.0, 10

    def pause(key: bytes, number: int) -> float:
        return served.pause(key, (3, number), size, seconds, followers)

    pauses = []
    for _ in range(AGAIN + 3):
        pauses.append(pause(b"greedy", 1))
        served.note(b"greedy", (3, 1), size)
    assert pauses == [0.0] * (1 + AGAIN) + [SHARE * followers * seconds] * 2
    assert pause(b"greedy", 2) == pause(b"another", 1) == 0
    for _ in range(100):
        served.note(b"honest", (3, 1), size // 50)
    assert pause(b"honest", 1) == 0, "a stream that breaks off at once has cost nothing"
    served.forget({b"greedy"}, 4)
    assert pause(b"greedy", 1) > 0
    served.forget({b"greedy"}, 5)
    assert pause(b"greedy", 1) == 0, "no frame of step 3 is kept in step 5"


def test_what_is_sent_of_a_frame_counts_until_it_breaks_off() -> None:
    async def test() -> None:
        key, at = b"key", (3, 0)
        driver, outbox = serves(key)
        await outbox.say(at, Said("phase", [bytes(2**20)]))
        for _ in range(2):  # each takes one chunk, and no more
            writer = TakesNothing()
            serving = asyncio.ensure_future(driver.followers._follow(key, list(at), None, writer))
            await writer.begun.wait()
            serving.cancel()
            await asyncio.wait({serving}, timeout=5)
        sent = driver.followers._served._sent[key][at]
        assert 2 * frames.CHUNK <= sent <= 2 * (frames.CHUNK + HEADER)

    asyncio.run(test())
