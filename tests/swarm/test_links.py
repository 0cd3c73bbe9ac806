"""What a peer reads of another one, when it begins anew at another place."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest

from btard.swarm import frames
from btard.swarm.ends import OVER
from btard.swarm.links import AHEAD, AHEAD_TOTAL, BESIDE, HEADER, Link
from btard.swarm.outbox import Position
from btard.swarm.rounds import Rounds
from tests.swarm.wires import Nobody, Wire, all_read, following, frame, nothing_said, run


def test_a_frame_that_arrives_at_a_restart_is_asked_for_again() -> None:
    """Were it kept, those before it would never be asked for: their sender would seem to have withheld them."""

    async def test() -> None:
        wire = Wire()
        link = Link(wire.dial, (0, 0), lambda: None)
        async with following(link):
            reader = await wire.redialled(1)
            reader.feed_data(await frame(8, 0, b"first"))
            half = await frame(8, 1, b"second")
            reader.feed_data(half[:-3])
            while link.position != (8, 1):
                await asyncio.sleep(0)
            reader.feed_data(half[-3:])  # it is there, but not yet read
            link.restart((8, 0))
            reader = await wire.redialled(2)
            assert wire.dialled == [(0, 0), (8, 0)]
            reader.feed_data(await frame(8, 0, b"first") + await frame(8, 1, b"second"))
            for at, body in (((8, 0), b"first"), ((8, 1), b"second")):
                link.want(at, 100)
                while (found := link.frame()) is None:
                    await asyncio.sleep(0.01)
                assert found.body == body

    run(test())


def test_a_restart_while_the_stream_is_opened_opens_it_again() -> None:
    async def test() -> None:
        wire, gate = Wire(), asyncio.Event()

        async def slowly(at: Position) -> Any:
            stream = await wire.dial(at)
            await gate.wait()
            return stream

        link = Link(slowly, (3, 4), lambda: None)
        async with following(link):
            reader = await wire.redialled(1)
            reader.feed_data(await frame(5, 7, b"later"))
            link.restart((5, 0))
            gate.set()
            await wire.redialled(2)
            assert wire.dialled == [(3, 4), (5, 0)] and link.position is None

    run(test())


def test_a_peer_that_was_ahead_once_is_waited_for_again() -> None:
    async def test() -> None:
        rounds = Rounds(None, 1.0, nothing_said())  # type: ignore[arg-type]
        link = rounds.links[1] = Link(Wire().dial, (7, 0), lambda: None)
        link.ahead_of_me = 9
        for step, settled in ((8, True), (9, False), (10, False)):
            rounds.position = (step, 0)
            assert rounds._settled(1, "phase") is settled

    run(test())


async def hear(rounds: Rounds, wire: Wire, *, late: bool, wait: float = 60.0) -> bool:
    """Whether a peer is heard in the phase at hand, in which it speaks at once, or, `late`, when it is over."""
    at = rounds.position
    said = await frame(*at, b"said")
    if not late:
        wire.readers[0].feed_data(said)
        while rounds.links[1].position != at:
            await asyncio.sleep(0)
    heard = await rounds.hear("phase", [1], 2**10, wait)
    rounds.advance()
    if late:
        wire.readers[0].feed_data(said)
        while rounds.links[1].position != at:
            await asyncio.sleep(0)
    return bool(heard)


@pytest.mark.parametrize("late_in", ["comparisons", "all phases"])
def test_who_is_late_again_and_again_costs_two_waits_in_a_step(late_in: str) -> None:
    """With a third one of these waits the test would be over its time."""

    async def test() -> None:
        wire, rounds = Wire(), Rounds(None, 60.0, nothing_said())  # type: ignore[arg-type]
        link = rounds.links[1] = Link(wire.dial, (0, 0), rounds._changed.set)
        async with following(link):
            await wire.redialled(1)
            for step in range(3):
                left = 2
                for phase in range(8):
                    late = late_in == "all phases" or phase % 2 == 1
                    heard = await hear(rounds, wire, late=late, wait=0.01 if left and late else 60.0)
                    left -= late and left > 0
                    assert heard is not late, "what is there in time counts, whoever says it"
                await rounds.finish(step, sign=False)

    run(test())


def test_newcomers_together_cost_one_wait_in_a_step_where_they_owe_nothing() -> None:
    """Their keys cost nothing: each would be silent in another phase. With one more wait the test would take too long.

    What one of them owes is waited for, whatever others have done: in the roll call, and where it shows its gradient.
    """

    async def test() -> None:
        rounds, wires = Rounds(None, 60.0, nothing_said()), {peer: Wire() for peer in (1, 2, 3)}  # type: ignore[arg-type]
        for peer, line in wires.items():
            rounds.links[peer] = Link(line.dial, (0, 0), rounds._changed.set)
        rounds.newcomers = frozenset({1, 2})

        async def say(peer: int, at: Position, phase: str) -> None:
            (await wires[peer].redialled(1)).feed_data(await frame(*at, b"said", phase))
            while at not in rounds.links[peer]._frames:
                await asyncio.sleep(0)

        async def without(late: int, phase: str, wait: float) -> None:
            at = rounds.position
            for peer in wires.keys() - {late}:
                await say(peer, at, phase)
            assert (await rounds.hear(phase, wires, 2**10, wait)).keys() == wires.keys() - {late}
            rounds.advance()
            await say(late, at, phase)

        async with following(*rounds.links.values()):
            for step in range(2):
                await without(1, "join", 0.01)
                await without(2, "join/compare", 60.0)
                await without(2, "commit", 0.01)
                await without(1, "commit/compare", 60.0)
                await without(3, "report", 0.01)
                await rounds.finish(step, sign=False)
            rounds.newcomers = frozenset()
            await without(1, "join", 0.01)
            await without(2, "join/compare", 0.01)

    run(test())


def test_liars_cost_a_peer_that_has_come_back_one_wait_until_it_has_been_in_a_step() -> None:
    """With one more wait the test would take too long. If not all that keep it waiting can lie, none is struck."""

    async def test() -> None:
        rounds, wires = Rounds(None, 60.0, nothing_said()), {peer: Wire() for peer in (1, 2, 3)}  # type: ignore[arg-type]
        for peer, line in wires.items():
            rounds.links[peer] = Link(line.dial, (0, 0), rounds._changed.set)

        async def without(late: int, wait: float) -> None:
            at = rounds.position
            for peer in (*(wires.keys() - {late}), late):
                if peer == late:
                    assert (await rounds.hear("phase", wires, 2**10, wait)).keys() == wires.keys() - {late}
                (await wires[peer].redialled(1)).feed_data(await frame(*at, b"said"))
                while at not in rounds.links[peer]._frames:
                    await asyncio.sleep(0)
            rounds.advance()

        async with following(*rounds.links.values()):
            rounds._behind = True
            for step in range(3):
                for phase in range(3):
                    await without(1, 60.0 if step or phase else 0.01)
                await rounds.finish(step, sign=step == 2)
            for wait in (0.01, 0.01, 60.0):  # it was in step 2
                await without(1, wait)
            rounds._behind = True
            rounds._forgive()
            for late in (1, 2, 1):  # b_t is 1
                await without(late, 0.01)

    run(test())


def test_who_was_late_once_is_waited_for_when_it_has_caught_up() -> None:
    async def test() -> None:
        wire, rounds = Wire(), Rounds(None, 60.0, nothing_said())  # type: ignore[arg-type]
        link = rounds.links[1] = Link(wire.dial, (0, 0), rounds._changed.set)
        async with following(link):
            await wire.redialled(1)
            assert not await hear(rounds, wire, late=True, wait=0.01)
            hearing = asyncio.ensure_future(rounds.hear("phase", [1], 2**10, 60.0))
            await asyncio.sleep(0.01)
            assert not hearing.done()
            wire.readers[0].feed_data(await frame(0, 2, b"said"))
            assert await hearing

    run(test())


def test_a_header_alone_allocates_nothing() -> None:
    """Whoever is allowed much, and announces it, has to send it before it costs memory here."""

    async def test() -> None:
        wire = Wire()
        link = Link(wire.dial, (0, 0), lambda: None)
        link.want((0, 0), 2**31)
        async with following(link):
            reader = await wire.redialled(1)
            said = Nobody()
            await frames.send(said, (0, 0, "evidence/0", 2**31))  # type: ignore[arg-type]
            reader.feed_data(said.bytes + bytes(10))
            while reader._buffer:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            assert link.position == (0, 0) and link.frame() is None
            assert tracemalloc.get_traced_memory()[1] < 2**20

    tracemalloc.start()
    try:
        run(test())
    finally:
        tracemalloc.stop()


def test_what_is_said_beside_the_phases_is_read_a_little_at_a_time() -> None:
    """Else a member could keep the others reading words that a step is over for ever."""

    async def test() -> None:
        wire, words = Wire(), []
        link = Link(wire.dial, (0, 0), lambda: None, words.append)
        async with following(link) as [task]:
            reader = await wire.redialled(1)
            for number in range(4 * BESIDE):
                reader.feed_data(await frame(0, number + 1, b"over", OVER))
            for phase in range(3):
                await all_read(reader)
                assert len(words) == BESIDE * (phase + 1)
                link.want((0, phase), 100)
            assert not task.done() and len(wire.readers) == 1

    run(test())


def test_a_word_that_is_larger_than_such_words_are_is_a_frame_like_others() -> None:
    """Else any size would be read, whatever the phase allows."""

    async def test() -> None:
        wire, words = Wire(), []
        link = Link(wire.dial, (0, 0), lambda: None, words.append, lambda: 100)
        async with following(link):
            reader = await wire.redialled(1)
            reader.feed_data(await frame(0, 1, bytes(100), OVER))
            for number in range(2, 2 * AHEAD_TOTAL // AHEAD):
                reader.feed_data(await frame(0, number, bytes(AHEAD), OVER))
            for number in range(2):
                link.want((0, number), 64)
                await all_read(reader)
                assert len(words) == 1 and link._held() <= AHEAD_TOTAL
            assert len(reader._buffer) > AHEAD_TOTAL - 2 * AHEAD  # type: ignore[attr-defined]

    run(test())


@pytest.mark.parametrize("again", [(3, 4), (3, 5), (2, 9)])
def test_frames_come_in_order(again: Position) -> None:
    """Else there is no end of those that everybody is past."""

    async def test() -> None:
        wire = Wire()
        link = Link(wire.dial, (3, 4), lambda: None)
        link.want((3, 6), 100)
        async with following(link):
            reader = await wire.redialled(1)
            assert wire.dialled == [(3, 6)]
            link.restart((3, 4))
            reader = await wire.redialled(2)
            link.want((3, 6), 100)
            for at in ((3, 4), (3, 5), again, (3, 6)):
                reader.feed_data(await frame(*at, b"said"))
            reader = await wire.redialled(3)
            assert wire.dialled[-1] == (3, 6) and link.frame() is None
            reader.feed_data(await frame(3, 6, b"said"))
            await all_read(reader)
            assert link.frame() is not None

    run(test())


@pytest.mark.parametrize("size", [0, 1000, AHEAD_TOTAL - HEADER])
def test_what_the_reader_is_past_is_read_up_to_a_bound(size: int) -> None:
    """In order, and of any number: else a member could fill the others' lines and wake them for ever."""

    async def test() -> None:
        wire, wakes = Wire(), list[None]()
        link = Link(wire.dial, (5, 0), lambda: wakes.append(None))
        fits = AHEAD_TOTAL // (HEADER + size)
        async with following(link):
            reader, number = await wire.redialled(1), 0
            for step in (6, 7):  # more is read when the reader goes on, and the same bound holds again
                link.want((step, 0), 100)
                for _ in range(fits):
                    reader.feed_data(await frame(5, number, bytes(size)))
                    number += 1
                await all_read(reader)
                assert len(wire.readers) == 1 and not reader._buffer  # type: ignore[attr-defined]
            for _ in range(3):
                reader.feed_data(await frame(5, number, bytes(max(size, 1))))
                number += 1
            await wire.redialled(2)
            assert wire.dialled == [(5, 0), (7, 0)] and len(reader._buffer) >= 2 * size  # type: ignore[attr-defined]
            assert len(wakes) <= 2 * fits + 4
            wire.readers[1].feed_data(await frame(7, 0, b"said"))
            await all_read(wire.readers[1])
            found = link.frame()
            assert found is not None and found.body == b"said"

    run(test())


def test_bytes_that_drip_in_do_not_extend_a_deadline() -> None:
    async def test() -> None:
        wire, rounds = Wire(), Rounds(None, 1.0, nothing_said())  # type: ignore[arg-type]
        link = rounds.links[1] = Link(wire.dial, (0, 0), rounds._changed.set)
        async with following(link):
            hearing = asyncio.ensure_future(rounds.hear("phase", [1], 2**31, 0.2))
            reader = await wire.redialled(1)
            reader.feed_data((await frame(0, 0, bytes(2**16)))[: -(2**16)])
            dripped = 0
            while not hearing.done():
                reader.feed_data(b"x")
                dripped += 1
                assert dripped < 2**16, "the body has arrived: this shows nothing"
                await asyncio.sleep(0.001)
            assert await hearing == {} and link.position == (0, 0)

    run(test())
