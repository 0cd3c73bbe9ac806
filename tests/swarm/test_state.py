"""States given away: what most vouch for is taken, whatever single members say or give."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from btard.protocol.download import Download, WrongState
from btard.protocol.identity import Identity
from btard.protocol.peer import Peer
from btard.swarm import frames
from btard.swarm.doors import Doors
from btard.swarm.state import Fetched, Snapshot, StateService, ask_status, fetch_state
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
        return self.guest.node.submit(fetch_state(self.guest, GUEST.public_key, members, template, timeout, at))

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


def test_a_status_is_what_the_peer_says(swarm: Swarm) -> None:
    key = swarm.cohort.roster.keys[3]
    assert swarm.guest.node.run(ask_status(swarm.guest, key)) == {"peer": 3}
