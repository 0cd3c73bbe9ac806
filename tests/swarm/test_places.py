"""What strangers can fill: waiting lists, requests to join, and what is remembered of them. All in memory."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from btard.protocol.download import Download
from btard.protocol.identity import Identity
from btard.protocol.messages import JoinRequest
from btard.swarm import founding
from btard.swarm import node as node_module
from btard.swarm import state as state_module
from btard.swarm.deadlines import Deadlines
from btard.swarm.doors import Doors
from btard.swarm.founding import Lobby
from btard.swarm.keys import peer_id_of
from btard.swarm.links import Refused
from btard.swarm.node import KNOWN, RECORD_LIFE, Node
from btard.swarm.notes import Notes
from btard.swarm.places import Places
from btard.swarm.state import EACH, HELD, WAIT, Snapshot, StateService

COORDINATOR, MEMBER = b"coordinator".ljust(32), b"member".ljust(32)


def stranger(number: int) -> bytes:
    return number.to_bytes(32, "little")


class Entrance(Doors):
    """Doors that nobody has to come to: the test calls what is behind them."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(), "run", {})  # type: ignore[arg-type]
        self.members = frozenset({MEMBER})


class Sink:
    """A writer that takes everything."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...


class House:
    """A state service, and callers that come to its doors."""

    def __init__(self, patience: float = 60.0) -> None:
        self.doors = Entrance()
        self.service = StateService(None, self.doors, patience, dict, frozenset({COORDINATOR}))  # type: ignore[arg-type]
        self.tasks: list[asyncio.Task[None]] = []

    async def call(self, door: str, key: bytes, *arguments: Any, reader: asyncio.StreamReader | None = None) -> None:
        serve = self.doors._doors[door][0]
        await serve(key, list(arguments), reader or asyncio.StreamReader(), Sink())  # type: ignore[arg-type]

    async def wait(self, key: bytes, step: int, reader: asyncio.StreamReader | None = None) -> asyncio.Task[None]:
        """Ask for the snapshot of `step`; returns when the request has been taken or refused."""
        task = asyncio.ensure_future(self.call("vouch", key, step, reader=reader))
        self.tasks.append(task)
        for _ in range(4):
            await asyncio.sleep(0)
        return task


def in_house(test: Callable[[House], Awaitable[None]], patience: float = 60.0) -> None:
    async def run() -> None:
        house = House(patience)
        try:
            await asyncio.wait_for(test(house), 20)
        finally:
            for task in house.tasks:
                task.cancel()
            await asyncio.gather(*house.tasks, return_exceptions=True)

    asyncio.run(run())


def test_a_stranger_fills_no_more_than_its_own_places() -> None:
    async def test(house: House) -> None:
        for _ in range(EACH):
            assert not (await house.wait(stranger(1), 2**31 - 1)).done()
        with pytest.raises(Refused, match=f"state: {EACH} of your requests are under way"):
            await house.call("vouch", stranger(1), 5)
        assert not (await house.wait(stranger(2), 5)).done()

    in_house(test)


def test_any_number_of_strangers_leaves_members_and_the_coordinator_their_places() -> None:
    async def test(house: House) -> None:
        for number in range(WAIT):
            await house.wait(stranger(number), 2**31 - 1)
        with pytest.raises(Refused, match="state: too many ask at once; ask again later"):
            await house.call("vouch", stranger(WAIT), 5)
        for key in (MEMBER, COORDINATOR):
            assert not (await house.wait(key, 5)).done()
        assert len(house.service._waiting) == WAIT + 2

    in_house(test)


def test_a_request_ends_with_its_stream() -> None:
    async def test(house: House) -> None:
        reader = asyncio.StreamReader()
        task = await house.wait(stranger(1), 2**31 - 1, reader)
        assert house.service._wanted == [2**31 - 1]
        reader.feed_eof()
        with pytest.raises(ConnectionError):
            await task
        assert house.service._wanted == [] and len(house.service._waiting) == 0

    in_house(test)


def test_a_request_for_a_step_in_a_thousand_years_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "AHEAD", 2)

    async def test(house: House) -> None:
        with pytest.raises(Refused, match="has not begun in time; ask again"):
            await house.call("vouch", stranger(1), 2**31 - 1)
        assert house.service._wanted == [] and len(house.service._waiting) == 0

    in_house(test, patience=0.01)


def test_only_a_signed_request_to_join_takes_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_module, "JOIN", 2)
    names = [Identity.from_seed("newcomer", number) for number in range(4)]
    requests = [JoinRequest.create(identity, "run") for identity in names]

    async def test(house: House) -> None:
        forged = (b"no signature", bytes(64), requests[1].signature)
        elsewhere = JoinRequest.create(names[0], "another run").signature
        for signature in (*forged, elsewhere):
            with pytest.raises(Refused, match="join: this is not your signature"):
                await house.call("join", names[0].public_key, signature)
        for request in (requests[0], requests[0], requests[1]):
            await house.call("join", request.key, request.signature)
        with pytest.raises(Refused, match="join: too many have asked"):
            await house.call("join", requests[2].key, requests[2].signature)
        house.service.patience = 0.0  # those who are there have waited for longer
        await house.call("join", requests[3].key, requests[3].signature)
        assert house.service.take_requests() == [requests[1], requests[3]]
        assert house.service.take_requests() == []

    in_house(test)


class Slow(Sink):
    """A stream whose other end reads nothing until it is told to."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()

    async def drain(self) -> None:
        await self.reads.wait()


def test_slow_readers_hold_few_copies_of_the_state() -> None:
    async def test(house: House) -> None:
        copies, given = list[weakref.ref[torch.Tensor]](), list[int]()
        honest, give = Slow(), house.doors._doors["state"][0]

        async def load(key: bytes, step: int, sink: Sink) -> None:
            with contextlib.suppress(Refused, ConnectionError):
                await give(key, [step], asyncio.StreamReader(), sink)  # type: ignore[arg-type]
                given.append(step)

        for step in range(20):
            state = {"parameters": torch.zeros(4)}
            copies.append(weakref.ref(state["parameters"]))
            snapshot = Snapshot(step, Download(b"{}", state), b"digest")
            await house.service._announce(snapshot, SimpleNamespace())  # type: ignore[arg-type]
            del state, snapshot
            loads = [load(MEMBER, step, Slow()), load(stranger(step), step, Slow())]
            if step == 10:
                loads.append(load(stranger(100), step, honest))
            house.tasks += [asyncio.ensure_future(coroutine) for coroutine in loads]
            await asyncio.sleep(0)
            while sum(copy() is not None for copy in copies) > HELD:
                await asyncio.sleep(0)  # what has been cut ends at once
            if step == 10 + HELD - 1:
                honest.reads.set()  # it had the time of as many steps
                while not given:
                    await asyncio.sleep(0)
        assert given == [10]

    in_house(test)


def test_what_breaks_off_is_not_kept_until_it_is_read() -> None:
    ended = list[str]()
    transport = SimpleNamespace(abort=lambda: ended.append("abort"))
    writer: Any = SimpleNamespace(transport=transport, close=lambda: ended.append("close"))

    async def serve() -> None:
        reader = asyncio.StreamReader()
        reader.feed_eof()
        key = peer_id_of(Identity.from_seed("reads nothing").public_key)
        await Entrance()._serve(SimpleNamespace(peer_id=key), reader, writer)  # type: ignore[arg-type]

    asyncio.run(serve())
    assert ended == ["abort", "close"]


def test_places_come_back() -> None:
    places = Places("test", 1, 1, lambda key: False)
    for number in range(3):
        with places.of(stranger(number)):
            assert len(places) == 1
            with pytest.raises(Refused), places.of(stranger(9)):
                pass
    assert len(places) == 0 and not places._taken


def test_the_lobby_remembers_those_who_came_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(founding, "WELCOME", 3)
    config = SimpleNamespace(run_id="run")
    lobby = Lobby(SimpleNamespace(), config, {}, lambda line: None)  # type: ignore[arg-type]

    async def come() -> None:
        for number in (0, 1, 2, 0, 3, 4, 0):
            await lobby._come(stranger(number), [])

    asyncio.run(come())
    assert set(lobby.welcome) == {stranger(0), stranger(3), stranger(4)}


def test_addresses_of_strangers_are_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [["/ip4/10.0.0.1/tcp/1"] * 50, ["\x1b[2J"], ["/ip4/" + "1" * 3000], "none"]
    found = {stranger(number): value for number, value in enumerate(said)}

    class Records:
        async def records(self, key: str, authors: None) -> dict[bytes, Any]:
            return found

    met = asyncio.run(founding.meet(Records(), "run"))  # type: ignore[arg-type]
    assert met == {stranger(0): said[0][:8]}


def test_the_first_to_come_get_the_seats_whatever_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(run_id="run", peers=3, deadlines=Deadlines())
    lobby = Lobby(SimpleNamespace(), config, {}, lambda line: None)  # type: ignore[arg-type]
    order = [9, 7, 0, 8, 1, 2]

    async def meet(node: Any, run_id: str, keys: tuple[bytes, ...]) -> dict[bytes, list[str]]:
        return {key: [] for key in keys if key != stranger(7)}  # it has knocked, and is not there

    async def found() -> tuple[bytes, ...]:
        for number in (*order, *reversed(order)):  # they knock again and again
            await lobby._come(stranger(number), [])
        return await lobby.list_founders()

    monkeypatch.setattr(founding, "meet", meet)
    assert asyncio.run(found()) == tuple(sorted(stranger(number) for number in (9, 0, 8)))


def test_strangers_crowd_nobody_out_of_what_a_process_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a member that claims many addresses."""
    members = [stranger(number) for number in range(40)]

    def address(number: int, at: int = 0) -> str:
        return f"/ip4/10.0.{number}.{at}/tcp/1/p2p/{peer_id_of(members[0])}"

    said = {key: [address(number)] for number, key in enumerate(members)}
    said[members[5]] = [address(5, at) for at in range(8)]
    crowd = {stranger(at): [f"/ip4/0.0.0.{at}/tcp/1"] * 8 for at in range(100, 200)}

    class Records:
        identity = SimpleNamespace(public_key=members[0])

        async def records(self, key: str, authors: frozenset[bytes]) -> dict[bytes, Any]:
            return {author: value for author, value in (crowd | said).items() if author in authors}

    class Noted(Exception): ...

    async def end(seconds: float) -> None:
        raise Noted

    notes = Notes(tmp_path)
    monkeypatch.setattr(asyncio, "sleep", end)
    with pytest.raises(Noted):
        asyncio.run(notes.keep(Records(), "run", (), lambda: members))  # type: ignore[arg-type]
    assert set(notes.addresses[:39]) == {address(number) for number in range(1, 40)}
    assert notes.addresses[39:] == [address(5, at) for at in range(1, 8)]
    assert len(set(Node(Identity.generate(), known=notes.addresses).known)) == KNOWN


def test_an_old_record_that_somebody_has_stored_again_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: dict[str, Any] = {}

    class Table:
        async def store(self, key: str, value: bytes, expires: float, subkey: str) -> bool:
            stored[subkey] = value, expires
            return True

        async def get(self, key: str, latest: bool) -> Any:
            return SimpleNamespace(value=stored)

    clock = [10**9 + 0.5]
    monkeypatch.setattr(node_module, "get_dht_time", lambda: clock[0])
    node = Node(Identity.from_seed("records"))
    node.dht = Table()  # type: ignore[assignment]
    me = node.identity.public_key

    async def seen(after: float, authors: set[bytes] | None = None) -> dict[bytes, Any]:
        clock[0] = 10**9 + 0.5 + after
        return await node.records("key", authors)

    assert asyncio.run(node.publish("key", [1]))
    assert asyncio.run(seen(RECORD_LIFE)) == asyncio.run(seen(-60.0)) == {me: [1]}, "clocks differ"
    assert asyncio.run(seen(RECORD_LIFE + 1)) == asyncio.run(seen(-RECORD_LIFE - 1)) == {}
    assert asyncio.run(seen(0.0, {stranger(1)})) == {}
