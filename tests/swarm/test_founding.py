"""The list of the first peers: who gets a seat, and what everybody else is told, before anybody waits."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from albert.config import Config
from btard.harness.typed_yaml import ConfigError
from btard.protocol.identity import Identity
from btard.swarm.config import NetworkConfig
from btard.swarm.deadlines import Deadlines
from btard.swarm.founding import (
    Lobby,
    NoFounders,
    announce,
    founders_key,
    give_founders,
    learn_founders,
    publish_founders,
)
from btard.swarm.node import Node

AGREED = {"peers": 2, "optimizer.lr": 0.002}
OTHER = {**AGREED, "optimizer.lr": 0.004}
FOR_LONG = Deadlines(gather=60)


class Meeting:
    """A coordinator that waits for 2 peers, and trainers that come."""

    def __init__(self, deadlines: Deadlines = FOR_LONG) -> None:
        self._coordinator = Node(Identity.from_seed("founding", "coordinator")).start()
        self._trainers: dict[int, Node] = {}
        network = NetworkConfig(initial_peers=self._coordinator.addresses[0])
        self.config = Config(
            run_id="mine",
            peers=2,
            protocol=replace(Config().protocol, validators=0),
            deadlines=deadlines,
            network=network,
        )
        self.said: list[str] = []
        self.lobby = Lobby(self._coordinator, self.config, AGREED, self.said.append)
        self._coordinator.run(self.lobby.open())
        self.listing = self._coordinator.submit(self._list())

    def close(self) -> None:
        for node in (*self._trainers.values(), self._coordinator):
            node.close()

    async def _list(self) -> tuple[bytes, ...]:
        founders = await self.lobby.list_founders()
        self._coordinator.spawn(publish_founders(self._coordinator, self.config.run_id, founders))
        return founders

    def node(self, number: int) -> Node:
        if number not in self._trainers:
            identity = Identity.from_seed("founding", number)
            self._trainers[number] = Node(identity, initial_peers=[self.config.network.initial_peers]).start()
        return self._trainers[number]

    def come(self, number: int, agreed: dict[str, Any] = AGREED, **changes: Any) -> Future[tuple[bytes, ...]]:
        """The trainer is there, and waits for the list."""
        node, config = self.node(number), replace(self.config, **changes)

        async def wait() -> tuple[bytes, ...]:
            node.spawn(announce(node, config.run_id))
            return await learn_founders(node, config, agreed, lambda text: None)

        return node.submit(wait())

    def keys(self, *numbers: int) -> tuple[bytes, ...]:
        return tuple(sorted(Identity.from_seed("founding", number).public_key for number in numbers))


@pytest.fixture
def meeting(request: pytest.FixtureRequest) -> Iterator[Meeting]:
    made = Meeting(getattr(request, "param", FOR_LONG))
    yield made
    made.close()


def briefly(seconds: float) -> pytest.MarkDecorator:
    """The meeting is over after so many seconds."""
    return pytest.mark.parametrize("meeting", [Deadlines(gather=seconds)], indirect=True)


def test_whoever_has_other_settings_gets_no_seat_and_is_told_at_once(meeting: Meeting) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr is 0\.004 with you, 0\.002 with me; use the swarm's conf"):
        meeting.come(0, OTHER).result(30)
    lists = [meeting.come(1), meeting.come(2)]
    assert {future.result(60) for future in (*lists, meeting.listing)} == {meeting.keys(1, 2)}
    told = [line for line in meeting.said if "gets no seat" in line]
    assert len(told) == 1 and "optimizer.lr" in told[0]
    # The list is made; newcomers compare their settings, too.
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        meeting.come(0, OTHER).result(30)
    assert meeting.come(0).result(60) == meeting.keys(1, 2)


def test_whoever_comes_to_its_senses_gets_a_seat(meeting: Meeting) -> None:
    with pytest.raises(ConfigError):
        meeting.come(0, OTHER).result(30)
    early = meeting.come(0)
    assert meeting.come(1).result(60) == early.result(60) == meeting.listing.result(60) == meeting.keys(0, 1)


def test_a_newcomer_gets_the_list_from_any_peer(meeting: Meeting) -> None:
    founders = [future.result(60) for future in [meeting.come(0), meeting.come(1)]].pop()
    peer = meeting.node(1)
    peer.run(give_founders(peer, meeting.config, AGREED, founders))
    newcomer = Node(Identity.from_seed("founding", 9), initial_peers=peer.addresses[:1]).start()
    config = replace(meeting.config, network=NetworkConfig(initial_peers=peer.addresses[0]))
    try:
        assert newcomer.run(learn_founders(newcomer, config, AGREED, lambda line: None)) == meeting.keys(0, 1)
        with pytest.raises(ConfigError, match=r"refuses this peer: settings: optimizer\.lr is 0\.004 with you"):
            newcomer.run(learn_founders(newcomer, config, OTHER, lambda line: None))
    finally:
        newcomer.close()


@briefly(3)
def test_another_run_id_is_told_at_once(meeting: Meeting) -> None:
    with pytest.raises(ConfigError, match="run_id: yours is 'yours', mine is 'mine'"):
        meeting.come(0, run_id="yours").result(30)
    with pytest.raises(NoFounders, match=r"only 0 of 2 peers have come .* and 1 with other settings"):
        meeting.listing.result(30)


@briefly(3)
def test_a_list_is_taken_from_the_named_coordinator_alone(meeting: Meeting) -> None:
    liar = meeting.node(2)
    liar.run(liar.publish(founders_key("mine"), list(meeting.keys(1, 2))))
    with pytest.raises(NoFounders, match="no list of its first peers from"):
        meeting.come(0).result(30)
    with pytest.raises(NoFounders, match=r"only \d of 2 peers have come"):
        meeting.listing.result(30)
