"""Swarms of real processes on this machine, whose peers and coordinator are killed, stopped and started again."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from albert.config import Config
from albert.data.corpus import Corpus
from albert.model import make_model
from albert.optimizer import Optimizer
from albert.swarm import COORDINATOR, peer_folder
from albert.task import AlbertTask
from btard.attacks.registry import make_attack
from btard.audit.__main__ import main as audit
from btard.drivers.local import LocalDriver
from btard.protocol.collusion import Collusion
from btard.protocol.effects import Compute
from btard.protocol.hashing import tensor_digest
from tests.albert.faulty import Fault, FaultySwarm, settings

EXIT_OUT = 3


class SimulatedTask:
    """The swarm's gradients for the simulator: `workers` says how many share a step."""

    def __init__(self, task: AlbertTask) -> None:
        self.task, self.d, self.workers = task, task.d, dict[int, int]()

    def gradients(self, params: torch.Tensor, requests: list[Compute], out: torch.Tensor) -> None:
        for request, row in zip(requests, out, strict=True):
            row.copy_(self.task.gradient(params, request, self.workers[request.step]))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as the swarm's processes have: bits depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def simulate(config: Config) -> tuple[str, str, dict[int, int]]:
    """The same run in the simulator: digest of the parameters, head of the ledger, peer -> step of its ban."""
    corpus = Corpus(config.data.path)
    size = corpus.vocab_size, corpus.sequence_length, config.seed
    optimizer = Optimizer(make_model(config.model, *size), config.optimizer)
    task = SimulatedTask(
        AlbertTask(make_model(config.model, *size), corpus, config.batch.total, config.batch.per_device)
    )
    attackers, attack = config.attackers(), config.attack
    collusion = Collusion(attackers, config.peers, config.seed)
    behaviours = {i: make_attack(str(attack.name), collusion, start=attack.start) for i in sorted(attackers)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 3 Byzantine peers of 8 with a validator: V3 can tie
        driver = LocalDriver(
            config.protocol_config(), task, behaviours=behaviours, collusion=collusion, mode="per_peer"
        )
    for step in range(config.steps):
        peer = driver.honest[0]
        task.workers[step] = len(peer.active) - len(set(peer.assignments) & set(peer.active))
        optimizer.apply(driver.step(optimizer.params).gradient, step)
    ledger = driver.honest[0].ledger
    bans = {peer: entry.step for entry in ledger.entries for peer in entry.peers}
    return tensor_digest(optimizer.params, "parameters").hex(), ledger.head.hex(), bans


def check_agreement(swarm: FaultySwarm, peers: set[int], removed: dict[int, str]) -> None:
    """All `peers` came to the end alike, and `removed` (peer -> kind) is what all of them have in their ledgers."""
    ends = swarm.summaries()
    assert ends.keys() == peers
    assert len({(end["digest"], end["ledger"]) for end in ends.values()}) == 1
    for peer, end in ends.items():
        assert {ban["peer"]: ban["kind"] for ban in end["bans"]} == removed
        assert set(end["signed_by"]) == set(end["active"])
        if end["evidence"]:
            assert audit([str(swarm.out / peer_folder(peer))]) == 0


def check_nothing_left(swarm: FaultySwarm) -> None:
    swarm.until(lambda: not swarm.left(), 10, f"{swarm.left()} left")


def test_attackers_are_banned_and_all_is_as_in_the_simulator(data: Path, tmp_path: Path, one_thread: None) -> None:
    attack = {"name": "sign_flip", "start": 1}
    config = settings(data, run_id="attackers 3", peers=8, byzantine=3, steps=9, attack=attack)
    digest, head, bans = simulate(config)
    assert bans.keys() == config.attackers()
    with FaultySwarm(config, tmp_path) as swarm:
        swarm.start()
        assert swarm.wait(90), swarm.alive()
        check_agreement(swarm, set(range(8)) - bans.keys(), dict.fromkeys(bans, "wrong_gradient"))
        end = swarm.summaries()[0]
        assert (end["digest"], end["ledger"]) == (digest, head)
        assert [swarm.code(peer) for peer in range(8)] == [EXIT_OUT if peer in bans else 0 for peer in range(8)]
        assert swarm.processes[COORDINATOR].exitcode == 0
        summary = json.loads((tmp_path / COORDINATOR / "summary.json").read_text())
        assert (summary["byzantine_banned"], summary["honest_banned"]) == (3, 0) and summary["heads"] == [head]
        check_nothing_left(swarm)


@pytest.mark.timeout(240)
def test_peers_and_coordinator_that_are_killed_or_stopped_come_back(data: Path, tmp_path: Path) -> None:
    config = settings(data, run_id="returns", steps=90, protocol={"max_absences": 1000})
    with FaultySwarm(config, tmp_path) as swarm:
        swarm.strike("killed", Fault(6, "kill", peer=3))
        swarm.start()
        # A trainer, kill -9 before it has committed to anything in its step: it owes nobody anything.
        assert swarm.struck("killed")[0] == 3
        swarm.until(lambda: not swarm.processes[peer_folder(3)].is_alive())
        swarm.start_trainer(3)
        swarm.until(lambda: "back at step" in swarm.log(peer_folder(3)))

        # The coordinator, kill -9: the others do not need it.
        os.kill(swarm.processes[COORDINATOR].pid, signal.SIGKILL)
        before = swarm.steps(0)
        swarm.until(lambda: swarm.steps(0) > before + 2)
        seen = swarm.status()["step"]
        swarm.start_coordinator()
        swarm.until(lambda: swarm.status()["step"] > max(seen, before + 2) and swarm.present() == set(range(5)))

        # A trainer, stopped for less than a deadline, wherever it is: the others wait for it.
        os.kill(swarm.pid(1), signal.SIGSTOP)
        swarm.pause(0.4 * config.deadlines.phase)
        os.kill(swarm.pid(1), signal.SIGCONT)

        # And stopped for so long, while it computes, that they have gone on without it.
        swarm.strike("stopped", Fault(swarm.steps(0) + 2, "stop", peer=2))
        _, step = swarm.struck("stopped")
        swarm.until(lambda: swarm.steps(0) > step + 2)
        os.kill(swarm.pid(2), signal.SIGCONT)

        assert swarm.wait(120), swarm.alive()
        check_agreement(swarm, set(range(5)), {})
        assert [process.exitcode for process in swarm.processes.values()] == [0] * 6
        assert all(set(end["signed_by"]) == set(range(5)) for end in swarm.summaries().values())
        summary = json.loads((tmp_path / COORDINATOR / "summary.json").read_text())
        assert summary["heads"] == [swarm.summaries()[0]["ledger"]]
        check_nothing_left(swarm)


@pytest.mark.timeout(240)
def test_whoever_is_lost_in_the_middle_of_a_step_is_removed_alone(data: Path, tmp_path: Path) -> None:
    config = settings(data, run_id="losses", peers=6, steps=20)
    with FaultySwarm(config, tmp_path) as swarm:
        swarm.strike("killed", Fault(4, "kill", validator=True))
        swarm.start()
        validator, step = swarm.struck("killed")
        witness = min({0, 1} - {validator})
        swarm.until(lambda: swarm.steps(witness) > step)

        # A worker that has committed, stopped for longer than a deadline: it finds out when it goes on.
        worker = max({2, 3} - {validator})
        swarm.strike("stopped", Fault(step + 2, "stop", peer=worker, phase="announce"))
        _, step = swarm.struck("stopped")
        swarm.until(lambda: swarm.steps(witness) > step)
        os.kill(swarm.pid(worker), signal.SIGCONT)

        assert swarm.wait(120), swarm.alive()
        check_agreement(swarm, set(range(6)) - {validator, worker}, {validator: "silent", worker: "silent"})
        assert (swarm.code(validator), swarm.code(worker)) == (-signal.SIGKILL, EXIT_OUT)
        assert "out of the run" in swarm.log(peer_folder(worker))
        check_nothing_left(swarm)


@pytest.mark.timeout(240)
def test_a_swarm_that_was_killed_goes_on_as_if_nothing_had_happened(
    data: Path, tmp_path: Path, one_thread: None
) -> None:
    attack = {"name": "sign_flip", "start": 4}
    config = settings(data, run_id="again", steps=18, checkpoint_every=4, attack=attack)
    digest, head, bans = simulate(config)
    with FaultySwarm(config, tmp_path) as swarm:
        swarm.start()
        for step in (2, 10):  # before there is a checkpoint, and after
            swarm.until(lambda step=step: swarm.steps(0) > step)
            for process in swarm.processes.values():
                process.kill()
            assert swarm.wait(10)
            (tmp_path / COORDINATOR / "status.json").unlink()
            swarm.start()
        assert swarm.wait(90), swarm.alive()
        check_agreement(swarm, set(range(5)) - bans.keys(), dict.fromkeys(bans, "wrong_gradient"))
        end = swarm.summaries()[0]
        assert (end["digest"], end["ledger"]) == (digest, head)
        assert "goes on from its checkpoint at step" in swarm.log(peer_folder(0))
        summary = json.loads((tmp_path / COORDINATOR / "summary.json").read_text())
        assert summary["heads"] == [head] and summary["byzantine_banned"] == len(bans)
        check_nothing_left(swarm)
