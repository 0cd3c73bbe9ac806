"""Certificates that are shown to whoever lacks one: that they come in time, and that nothing piles up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from btard.drivers.letters import Pieces
from btard.protocol.behaviour import Behaviour, Context, View
from btard.protocol.collusion import Collusion
from btard.protocol.effects import Compare, Relay
from btard.protocol.identity import Identity
from btard.protocol.messages import CoinReveal
from btard.protocol.signed import Relayed, Signed, relay_digest
from btard.swarm import certificates, links
from btard.swarm.certificates import Certificates
from btard.swarm.deadlines import Deadlines
from btard.swarm.driver import SwarmDriver
from btard.swarm.links import Link, Refused
from btard.swarm.outbox import Position, Said
from btard.swarm.rounds import STRIKES, Rounds
from tests.swarm.cohort import Cohort, Fault, Member
from tests.swarm.wires import Wire, all_read, following, frame, nothing_said, run

LIARS, VICTIM = (1, 3), 0


class Splits(Behaviour):
    """Liars 1 and 3 deny the victim their signature on what they heard at the roll call.

    In the first round liar 3 hands it a second message of liar 1: if it goes through the rounds alone, it alone removes
    liar 1, and lives in a history of its own.
    """

    byzantine = True
    keys: ClassVar[dict[int, Identity]] = {}

    def acts(self, ctx: View) -> bool:
        return True

    def compare(self, ctx: Context, phase: str, view: bytes) -> tuple[bytes, Mapping[int, bytes | None]]:
        self.keys[ctx.peer] = ctx.identity
        return view, {VICTIM: None} if phase == "commit" else {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Mapping[int, Any]) -> Mapping[int, Any]:
        if phase != "commit" or ctx.peer != LIARS[1] or round != 1:
            return {}
        assert ctx.record is not None
        context = ctx.record.context
        second = Signed.create(
            self.keys[LIARS[0]], context, LIARS[0], ctx.step, phase, CoinReveal(bytes(32), bytes(32))
        )
        passed_on = self.keys[LIARS[1]].sign(relay_digest(second.digest(context)))
        return {VICTIM: (Relayed(second, ((LIARS[1], passed_on),)),)}


class Two(Cohort):
    def behaviour(self, number: int) -> tuple[Behaviour, Collusion | None]:
        return (Splits(), None) if number in LIARS else super().behaviour(number)


def test_a_certificate_does_not_stand_behind_frames_that_are_not_yet_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The victim says that it lacks one when the others have begun to send the frames of a later phase."""
    monkeypatch.setattr(links, "AHEAD", 0)  # so that small ones are held back as large ones are
    held: list[bool] = []
    waited: list[tuple[dict[int, int], dict[int, int]]] = []

    def wait_for_frames(member: Member) -> None:
        rounds = member.driver.rounds
        others = [rounds.links[peer] for peer in (2, 4)]
        until = time.monotonic() + 30
        while not all(link.position is not None and link.position > rounds.position for link in others):
            assert time.monotonic() < until
            time.sleep(0.001)
        held.extend(link.position not in link._frames for link in others)

    def count_waits(member: Member) -> None:
        waited.append((dict(member.driver.rounds._strikes), dict(member.driver.rounds._unshown)))

    deadlines = Deadlines(compute=20.0, phase=8.0, message=0.2, uplink=1, give_up=5.0)
    faults = (
        Fault(VICTIM, 0, "commit/relay/1", wait_for_frames),
        *(Fault(peer, 0, "accuse/0", count_waits) for peer in (0, 2, 4)),
    )
    with Two(peers=5, byzantine=2, deadlines=deadlines, validators=0, faults=faults) as cohort:
        cohort.attackers = frozenset(LIARS)
        cohort.run(1)
        assert held == [True, True]
        assert [member.end for member in cohort.honest] == [None] * 3
        assert not any(cohort.removed(member.driver.peer.id) for member in cohort.honest)
        assert len({member.driver.peer.ledger.head for member in cohort.honest}) == 1
        assert waited == [({}, {})] * 3, "nobody has waited in vain"


class Line:
    """Delivers certificates: what was delivered, to whom; `fail` says what happens at each attempt."""

    def __init__(self, rounds: Rounds, peers: tuple[int, ...] = (1, 2)) -> None:
        self.delivered: list[tuple[int, Position, bytes]] = []
        self.attempts = 0
        self.fail: Callable[[], Awaitable[None]] | None = None
        for peer in peers:
            rounds.links[peer] = Link(Wire().dial, (0, 0), lambda peer=peer: rounds._heard_of(peer))
            rounds.certificates.reach(peer, lambda at, said, peer=peer: self._deliver(peer, at, said))

    async def _deliver(self, peer: int, at: Position, said: Pieces) -> None:
        self.attempts += 1
        if self.fail is not None:
            await self.fail()
        self.delivered.append((peer, at, b"".join(said)))


class Tasks:
    """What spawns tasks in place of a node; `alive` are those that have not ended."""

    def __init__(self) -> None:
        self.all: list[asyncio.Task[None]] = []

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.all = [task for task in self.all if not task.done()]
        self.all.append(asyncio.ensure_future(work))
        return self.all[-1]

    @property
    def alive(self) -> int:
        return sum(not task.done() for task in self.all)


def rounds_of(tasks: Tasks) -> Rounds:
    return Rounds(tasks, 60.0, nothing_said())  # type: ignore[arg-type]


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def speak(rounds: Rounds, peer: int, at: Position) -> None:
    rounds.links[peer].position = at
    rounds._heard_of(peer)


def test_a_member_that_speaks_in_the_first_round_is_shown_the_certificate_once() -> None:
    async def test() -> None:
        rounds = rounds_of(Tasks())
        line = Line(rounds, (1, 2, 3))
        rounds.position = (4, 6)
        speak(rounds, 1, (4, 6))
        speak(rounds, 3, (4, 6))
        rounds.show((1, 2), [b"cert", b"ificate"])
        rounds.pass_by(3)
        await turns()
        assert line.delivered == [(1, (4, 6), b"certificate")], "peer 3 is no member"
        speak(rounds, 2, (4, 5))
        speak(rounds, 2, (4, 6))
        for at in ((4, 7), (4, 6), (4, 6)):
            speak(rounds, 1, at)
        await turns()
        assert line.delivered[1:] == [(2, (4, 6), b"certificate")]

    run(test())


def test_a_certificate_is_delivered_again_if_its_stream_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "FIRST_PAUSE", 0.0)

    async def test() -> None:
        tasks = Tasks()
        rounds = rounds_of(tasks)
        line = Line(rounds)

        async def breaks() -> None:
            if line.attempts < 3:
                raise OSError("broken")

        async def refuses() -> None:
            raise Refused("not asked for")

        line.fail = breaks
        speak(rounds, 1, (0, 0))
        rounds.show((1,), [b"certificate"])
        await asyncio.gather(*tasks.all)
        assert line.attempts == 3 and len(line.delivered) == 1
        line.fail = refuses
        speak(rounds, 2, (0, 0))
        rounds.show((2,), [b"certificate"])
        await asyncio.gather(*tasks.all)
        assert line.attempts == 4

    run(test())


def test_what_is_kept_for_a_peer_that_takes_nothing_is_bounded() -> None:
    async def test() -> None:
        tasks = Tasks()
        rounds = rounds_of(tasks)
        line, forever = Line(rounds), asyncio.Event()

        async def fail() -> None:
            await forever.wait()

        line.fail = fail
        for step in range(50):
            rounds.position = (step, 0)
            for _ in range(7):
                rounds.pass_by(2)
                speak(rounds, 1, rounds.position)
                speak(rounds, 2, rounds.position)
                rounds.show((1, 2), [bytes(1000)])
                rounds.pass_by(8)
                await turns()
                assert tasks.alive == 2 and len(rounds.certificates._mine) <= 2 * 7
                assert len(rounds.certificates._shown) <= 2 * 2 * 7
        assert line.attempts == 50 * 7 * 2
        await rounds.restart(0, nothing_said())
        assert not tasks.alive and not rounds.certificates._tasks

    run(test())


def test_a_new_life_shows_its_own_certificates() -> None:
    async def test() -> None:
        rounds = rounds_of(Tasks())
        line = Line(rounds)
        rounds.position = (5, 3)
        speak(rounds, 1, (5, 3))
        rounds.show((1,), [b"first life"])
        await turns()
        await rounds.restart(3, nothing_said())
        speak(rounds, 1, (5, 3))
        await turns()
        assert [said for _, _, said in line.delivered] == [b"first life"]
        rounds.position = (5, 3)
        rounds.show((1,), [b"second life"])
        await turns()
        assert [said for _, _, said in line.delivered] == [b"first life", b"second life"]

    run(test())


def reader_of(body: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(body)
    return reader


def test_only_what_is_asked_for_is_read() -> None:
    async def test() -> None:
        shown = Certificates(asyncio.ensure_future, lambda: None)
        with pytest.raises(Refused):
            await shown.take(1, (2, 3), 4, reader_of(b"junk"))
        shown.want((2, 3), (1, 2), 100)
        for member, at, size in ((1, (2, 4), 4), (1, (1, 3), 4), (3, (2, 3), 4), (1, (2, 3), 101), (1, (2, 3), -1)):
            unread = reader_of(bytes(200))
            with pytest.raises(Refused):
                await shown.take(member, at, size, unread)
            assert len(unread._buffer) == 200  # type: ignore[attr-defined]
        await shown.take(1, (2, 3), 4, reader_of(b"mine"))
        with pytest.raises(Refused):
            await shown.take(1, (2, 3), 4, reader_of(b"more"))
        broken = asyncio.ensure_future(shown.take(2, (2, 3), 5, reader_of(b"ag")))
        await turns()
        assert not broken.done()
        await shown.take(2, (2, 3), 5, reader_of(b"again"))
        await asyncio.wait({broken})
        assert broken.cancelled(), "its sender has begun anew"
        assert shown.close() == {1: b"mine", 2: b"again"}
        with pytest.raises(Refused):
            await shown.take(1, (2, 3), 4, reader_of(b"late"))

    run(test())


def test_who_has_gone_on_without_showing_anything_has_no_strike() -> None:
    """A third wait for its certificate, or one for a peer that was struck, would take this test over its time."""

    async def test() -> None:
        wire, rounds = Wire(), rounds_of(Tasks())
        link = rounds.links[1] = Link(wire.dial, (0, 0), rounds._changed.set)

        async def hear(wait: float) -> Mapping[int, bytearray]:
            return await rounds.hear("phase", [1], 2**10, wait)

        async with following(link):
            reader = await wire.redialled(1)
            for number in range(1, 2 * STRIKES + 1, 2):
                reader.feed_data(await frame(0, number + 1, b"said"))
                await all_read(reader)
                rounds.position = (0, number)
                rounds.certificates.want(rounds.position, (1,), 2**10)
                assert not await hear(0.01)
                rounds.advance()
                assert await hear(60.0), "it is heard where it speaks"
            assert not rounds._strikes and not rounds._struck
            number = 2 * STRIKES + 1
            reader.feed_data(await frame(0, number + 1, b"said"))
            await all_read(reader)
            rounds.position = (0, number)
            rounds.certificates.want(rounds.position, (1,), 2**10)
            assert not await hear(60.0)
            rounds.position = (0, number + 2)
            hearing = asyncio.ensure_future(hear(60.0))
            await turns()
            assert not hearing.done(), "it is waited for where it owes something"
            reader.feed_data(await frame(0, number + 2, b"said"))
            assert await hearing

    run(test())


def test_a_certificate_that_comes_ends_the_wait_for_its_sender() -> None:
    async def test() -> None:
        rounds = rounds_of(Tasks())
        Line(rounds)
        rounds.position = (0, 3)
        rounds.certificates.want((0, 3), (1, 2), 2**10)
        hearing = asyncio.ensure_future(rounds.hear("phase", (1, 2), 2**10, 60.0))
        for peer, said in ((1, b"mine"), (2, b"another")):
            await turns()
            assert not hearing.done()
            await rounds.certificates.take(peer, (0, 3), len(said), reader_of(said))
        assert await hearing == {1: b"mine", 2: b"another"}

    run(test())


@pytest.mark.parametrize("first", [False, True])
def test_in_a_step_that_is_over_an_answer_has_the_time_of_two_messages(first: bool) -> None:
    """Peers that have passed by have not waited for this one: its request has to reach them first."""
    hurries: list[float] = []

    async def say(said: Said) -> None:
        pass

    async def hear(*said: Any, hurry: float, **rest: Any) -> dict[int, bytearray]:
        hurries.append(hurry)
        return {}

    rounds = SimpleNamespace(
        say=say,
        hear=hear,
        advance=lambda: None,
        position=(0, 7),
        certificates=Certificates(asyncio.ensure_future, id),  # type: ignore[arg-type]
    )
    peer = SimpleNamespace(
        current=SimpleNamespace(members=(0, 1, 2)), limits=lambda record: SimpleNamespace(message=lambda kind: 500)
    )
    driver = SimpleNamespace(
        peer=peer,
        rounds=rounds,
        deadlines=Deadlines(message=3.0),
        _clock=SimpleNamespace(wait=lambda effect: 9.0),
        _hold=0,
        _loading=0.0,
    )
    effect = Relay("accuse/0/relay/1", {}, 100, 0, first=True) if first else Compare("accuse/0/compare", None, {})
    asyncio.run(SwarmDriver._round(driver, Said("phase", None), (1, 2), 100, effect))  # type: ignore[arg-type]
    assert hurries == [6.0 if first else 3.0]
    assert rounds.certificates.asked == (frozenset({1, 2}) if first else frozenset())
