"""States given away: what most vouch for is taken, whatever single members say or give."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from btard.protocol.download import Download, Vouch, WrongState
from btard.protocol.envelope import DTYPES
from btard.protocol.identity import Identity
from btard.protocol.peer import Peer
from btard.swarm import fetch, frames
from btard.swarm.deadlines import Deadlines
from btard.swarm.doors import Doors
from btard.swarm.fetch import Fetched, ask_status, fetch_state, fetch_training
from btard.swarm.state import Snapshot, StateService
from tests.swarm.cohort import Cohort
from tests.swarm.daemons import Lodger

GUEST = Identity.from_seed("state", "guest")
SETTINGS = {"a": 1}


@dataclass
class Swarm:
    """Four members after one step, what gives their state away, and somebody who asks."""

    cohort: Cohort
    services: list[StateService]
    guest: Doors

    def ask(self, timeout: float = 10.0, at: int | None = None) -> Future[Fetched]:
        """Ask for the state of the next step, or of step `at`."""
        members = dict(enumerate(self.cohort.roster.keys))
        template = {"parameters": torch.empty(self.cohort.d)}
        fetching = fetch_state(self.guest, GUEST.public_key, members, template, Deadlines(), timeout, at)
        return self.guest.node.submit(fetching)

    def fetch(self, timeout: float = 10.0, at: int | None = None) -> Fetched:
        asked = self.ask(timeout, at)
        for member, service in zip(self.cohort.members, self.services, strict=True):
            while not service.begins(member.driver.peer.t) and not asked.done():
                time.sleep(0.01)
            service.publish(member.driver.peer, {"parameters": member.params})
        return asked.result(60)


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    with Cohort(peers=4, byzantine=1) as cohort:
        cohort.run(1)
        services = [
            StateService(m.node, m.driver.doors, 10.0, lambda m=m: {"peer": m.driver.peer.id}) for m in cohort.members
        ]
        node = Lodger(GUEST, initial_peers=cohort.members[0].node.addresses[:1]).start()
        yield Swarm(cohort, services, Doors(node, cohort.config.run_id, SETTINGS))
        node.close()


def test_the_state_comes_with_its_step_and_who_vouched_for_it(swarm: Swarm) -> None:
    found = swarm.fetch()
    assert found.step == 1 and len(found.vouched_by) >= 3
    assert torch.equal(found.download.tensors["parameters"], swarm.cohort.members[0].params)


def test_one_member_is_enough_for_who_knows_what_was_agreed_on(swarm: Swarm) -> None:
    """Where liars vouch for nothing, and honest peers lack the state as well, one may be all that there is."""
    members = swarm.cohort.members
    own = {"parameters": members[0].params}
    for number, service in enumerate(swarm.services[:3]):
        service.publish(
            members[number].driver.peer, own if number == 2 else {"parameters": torch.zeros(swarm.cohort.d)}
        )
    keys = dict(enumerate(swarm.cohort.roster.keys))

    def ask(right: torch.Tensor) -> Any:
        def is_right(tensors: Any) -> bool:
            return torch.equal(tensors["parameters"], right)

        fetching = fetch_training(swarm.guest, keys, 1, own, is_right, Deadlines(), 0.5)
        return swarm.guest.node.submit(fetching).result(60)

    assert torch.equal(ask(own["parameters"])["parameters"], own["parameters"])
    assert ask(torch.ones(swarm.cohort.d)) is None


def test_the_state_of_a_certain_step_comes_when_that_begins(swarm: Swarm) -> None:
    asked = swarm.ask(at=1)
    service = swarm.services[0]
    while not service.begins(1):
        time.sleep(0.01)
    assert not service.begins(0)  # nobody waits for that one
    assert not asked.done()
    found = swarm.fetch(at=1)
    assert found.step == 1 and asked.result(60).step == 1
    swarm.guest.node.run(until_nobody_waits(swarm.services))
    assert not any(service.begins(1) for service in swarm.services)


def test_whoever_hangs_up_waits_no_more(swarm: Swarm) -> None:
    asked = swarm.ask(at=2**30)
    for service in swarm.services:
        while not service.begins(2**30):
            time.sleep(0.01)
    asked.cancel()
    swarm.guest.node.run(asyncio.wait_for(until_nobody_waits(swarm.services, 2**30), 10))
    assert not any(service._waiting for service in swarm.services)


async def until_nobody_waits(services: list[StateService], step: int = 1) -> None:
    while any(step in service._wanted for service in services):
        await asyncio.sleep(0.01)


def test_a_step_that_has_begun_without_a_snapshot_is_refused_when_the_next_one_begins(swarm: Swarm) -> None:
    asked = swarm.ask(at=1)
    for service in swarm.services:
        while not service.begins(1):
            time.sleep(0.01)
    for service in swarm.services:
        service.begins(2)
    with pytest.raises(WrongState, match="step 1 has begun already, without a snapshot"):
        asked.result(60)


def test_who_comes_back_to_an_earlier_step_gives_its_states(swarm: Swarm) -> None:
    """The others had all stopped, and have begun again at their checkpoint."""
    load = swarm.guest.node.submit(asyncio.sleep(60))
    for member, service in zip(swarm.cohort.members, swarm.services, strict=True):
        service.publish(member.driver.peer, {"parameters": member.params})
        (snapshot,) = service._snapshots.values()
        for step in range(8, 16):
            service._loads[step] = {load}  # type: ignore[arg-type]
            member.node.run(service._announce(replace(snapshot, step=step), member.driver.peer))
        service._snapshots.pop(1, None)
    assert swarm.fetch().step == 1 and swarm.fetch().step == 1
    assert load.cancelled()


class Misnumbering(StateService):
    """Gives the right state, and says that it is of step 41."""

    async def _announce(self, snapshot: Snapshot, peer: Peer) -> None:
        await super()._announce(replace(snapshot, step=41), peer)


def test_a_donor_that_calls_the_step_another_fools_nobody(swarm: Swarm) -> None:
    swarm.cohort.members[3].params = torch.zeros(swarm.cohort.d)  # so that the liar's word is needed
    member = swarm.cohort.members[0]
    swarm.services[0] = Misnumbering(member.node, member.driver.doors, 10.0, dict)
    found = swarm.fetch()
    assert found.step == 1 and found.vouched_by == (0, 1, 2)


def test_whoever_vouches_for_another_state_is_not_named(swarm: Swarm) -> None:
    swarm.cohort.members[2].params = torch.zeros(swarm.cohort.d)
    found = swarm.fetch()
    assert 2 not in found.vouched_by
    assert torch.equal(found.download.tensors["parameters"], swarm.cohort.members[0].params)


def test_without_a_majority_there_is_no_state(swarm: Swarm) -> None:
    for member in swarm.cohort.members[:2]:
        member.params = torch.zeros(swarm.cohort.d)
    with pytest.raises(WrongState, match="no state has the signatures of more than half of the 4 members, only of 2"):
        swarm.fetch()


def test_a_donor_of_other_tensors_is_passed_over(swarm: Swarm) -> None:
    async def give_nonsense(key: bytes, arguments: list[Any], reader: Any, writer: Any) -> None:
        await frames.send(writer, ("state", arguments[0], 2, [("parameters", 0, (2**31,))]), [b"{}"])

    swarm.cohort.members[0].driver.doors.add("state", give_nonsense)
    found = swarm.fetch()
    assert isinstance(found.download, Download) and found.step == 1


# Donors that stall.

MEMBERS = [Identity.from_seed("donors", i) for i in range(5)]
ASKER = Identity.from_seed("donors", "asker").public_key


class Stream:
    """Both ends of a stream in one."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()

    def write(self, data: Any) -> None:
        self.reader.feed_data(bytes(data))

    async def drain(self) -> None:
        pass


class FakeDoors:
    """Those of five members that vouch for one state. Peer -> how it gives it away: not listed, at once."""

    run_id = "donors"

    def __init__(self, number: int, gives: dict[int, str]) -> None:
        self.gives, self.asked = gives, list[int]()
        self.state = Download(json.dumps({"coins": ["00"] * 3, "n": number}).encode(), {"parameters": torch.ones(10)})

    @asynccontextmanager
    async def visit(self, key: bytes, door: str, *arguments: Any) -> AsyncIterator[tuple[Any, None]]:
        number = next(i for i, member in enumerate(MEMBERS) if member.public_key == key)
        stream: Any = Stream()
        if self.gives.get(number) == "nothing":
            raise ConnectionError("gone")
        if door == "vouch":
            vouch = Vouch.create(MEMBERS[number], self.run_id, number, ASKER, self.state.digest(self.run_id))
            await frames.send(stream, ("vouch", 2, vouch.digest, vouch.signature))
        else:
            self.asked.append(number)
            gives = self.gives.get(number, "at once")
            if gives == "refuses":
                await frames.send(stream, ("refused", "I do not have it"))
            else:
                header = ("state", 2, len(self.state.state), [("parameters", DTYPES.index(torch.float32), (10,))])
                await frames.send(stream, header, [self.state.state])
                body = self.state.tensors["parameters"].numpy().tobytes()
                await frames.send(stream, ("tensor",), [body[:-1] if gives == "stalls" else body])
        yield stream.reader, None

    async def fetch(self, tolerated: int = 0, count: int = 5) -> Fetched:
        members = {i: member.public_key for i, member in enumerate(MEMBERS[:count])}
        template = {"parameters": torch.empty(10)}
        doors: Any = self
        fetching = fetch_state(doors, ASKER, members, template, Deadlines(), 300.0, tolerated=tolerated)
        return await asyncio.wait_for(fetching, 20)


@pytest.mark.parametrize("stalling", [{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, 0}])
def test_donors_that_stall_keep_nobody_waiting(stalling: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "NEXT_DONOR", 0.01)
    doors = FakeDoors(0, dict.fromkeys(stalling, "stalls"))
    found = asyncio.run(doors.fetch())
    assert found.step == 2 and not set(doors.asked) <= stalling


def test_a_donor_is_given_up_that_is_slower_than_the_slowest_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "GRACE", 0.1)
    doors = FakeDoors(0, {0: "stalls", **dict.fromkeys(range(1, 5), "refuses")})
    with pytest.raises(WrongState, match=r"peer 0: only .* bytes in .* s, more slowly than deadlines.uplink"):
        asyncio.run(doors.fetch())


def test_no_state_is_vouched_for_by_those_alone_who_may_be_liars() -> None:
    """Whoever knows only four members of more takes three for most, though three may be Byzantine."""
    doors = FakeDoors(0, {3: "nothing"})
    with pytest.raises(WrongState, match="only 3 members vouch for the state, and 3 may be Byzantine"):
        asyncio.run(doors.fetch(tolerated=3, count=4))
    assert asyncio.run(doors.fetch(tolerated=3, count=5)).vouched_by == (0, 1, 2, 4)
    assert asyncio.run(FakeDoors(0, {}).fetch(tolerated=7, count=4)).vouched_by == (0, 1, 2, 3), "all are enough"


def test_no_member_is_the_first_donor_of_every_state() -> None:
    first = []
    for number in range(12):
        doors = FakeDoors(number, {})
        asyncio.run(doors.fetch())
        first += doors.asked
    assert len(first) == 12 and len(set(first)) > 2


def test_a_status_is_what_the_peer_says(swarm: Swarm) -> None:
    key = swarm.cohort.roster.keys[3]
    assert swarm.guest.node.run(ask_status(swarm.guest, key)) == {"peer": 3}
