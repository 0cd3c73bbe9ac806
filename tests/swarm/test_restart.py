"""A real swarm of which all processes end at once: its members go on from their checkpoints, also those that joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from btard.harness.run_folder import read_metrics
from btard.harness.sections import ProtocolSection
from btard.protocol.peer import Peer
from btard.swarm.config import NetworkConfig
from btard.swarm.deadlines import Deadlines
from btard.swarm.notes import Notes
from btard.swarm.task import load_task
from tests.albert.trainers import Trainers
from tests.swarm.cohort import Killed
from tests.swarm.quadratic import Config

EVERY = 4
CONFIG = Config(
    run_id="restart",
    peers=4,
    byzantine=0,
    steps=1000,
    threads=1,
    checkpoint_every=EVERY,
    protocol=replace(ProtocolSection(), max_absences=50, probation=2),
    deadlines=Deadlines(compute=10, phase=6, message=0.2, uplink=1, give_up=1, gather=30),
)
NEWCOMER = 4


@pytest.fixture
def trainers(tmp_path: Path) -> Iterator[Trainers]:
    found = Trainers(CONFIG, tmp_path, source=load_task("tests.swarm.quadratic:make"))
    yield found
    found.close()


def start(trainers: Trainers) -> None:
    for number in range(5):
        changes = {} if number < NEWCOMER else {"peer": None}
        if number == NEWCOMER:
            known = trainers.trainers[1].node.addresses[0]
            changes["network"] = replace(NetworkConfig(), initial_peers=known)
        trainers.make(number, **changes)
        trainers.start(number)


def run_until(trainers: Trainers, reached: Callable[[Peer], bool]) -> None:
    """Start all, and end each as kill -9 does, in the first step in which this is so."""

    def watch(number: int, phase: str) -> None:
        if phase == "compute" and reached(trainers.trainers[number].peer):
            raise Killed

    trainers.trainers.clear()
    trainers._watch = watch  # type: ignore[method-assign]
    start(trainers)
    assert set(trainers.wait().values()) == {"killed"}, (trainers.ends, trainers.lines)
    trainers.close()


def test_members_that_joined_go_on_with_the_others_after_all_have_been_killed(trainers: Trainers) -> None:
    run_until(trainers, lambda peer: NEWCOMER in peer.active and peer.t % EVERY == 1)
    stopped = trainers.trainers[0].peer.t
    lives = [Notes(trainers.out / f"peer-{number}").lives[0] for number in range(5)]
    run_until(trainers, lambda peer: peer.t == stopped + 2)
    peers = [trainers.trainers[number].peer for number in range(5)]
    assert len({(peer.active, peer.ledger.head, peer.epoch) for peer in peers}) == 1
    assert [entry.kind for entry in peers[0].ledger.entries] == ["join", "member"]
    for number, life in enumerate(lives):
        folder, lines = trainers.out / f"peer-{number}", trainers.lines[number]
        assert any(line == f"goes on from its checkpoint at step {stopped - 1}" for line in lines)
        assert Notes(folder).lives == (peers[0].epoch, {life: stopped - 1})
        assert [line["step"] for line in read_metrics(folder)][-3:] == [stopped - 1, stopped, stopped + 1]
