"""Swarms of real processes on this machine, whose peers and coordinator are killed, stopped and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hivemind.p2p import P2PDaemonError

from albert.config import Config
from albert.data.corpus import Corpus
from albert.model import make_model
from albert.optimizer import Optimizer
from albert.task import AlbertTask
from btard.attacks.registry import make_attack
from btard.audit.__main__ import main as audit
from btard.drivers.local import LocalDriver
from btard.harness.settings import config_text
from btard.protocol.collusion import Collusion
from btard.protocol.hashing import tensor_digest
from btard.protocol.identity import Identity
from btard.protocol.wire import Malformed
from btard.swarm import frames
from btard.swarm.doors import HELLO, PROTOCOL
from btard.swarm.founding import announce, meet
from btard.swarm.links import AHEAD
from btard.swarm.local import COORDINATOR, peer_folder
from btard.swarm.node import Node
from tests import warm
from tests.albert.faulty import Fault, FaultySwarm, settings

pytestmark = pytest.mark.timeout(360)  # starting processes takes long on a busy machine
EXIT_OUT = 3
FLOOD = 2**27
"""Bytes that a hostile peer tries to make another one hold."""
PATIENCE = 240.0
"""Seconds after which a swarm hangs."""


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
    task = AlbertTask(make_model(config.model, *size), corpus, config.batch.total, config.batch.per_device)
    attackers, attack = config.attackers(), config.attack
    collusion = Collusion(attackers, config.peers, config.seed)
    behaviours = {i: make_attack(str(attack.name), collusion, start=attack.start) for i in sorted(attackers)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 3 Byzantine peers of 8 with a validator: V3 can tie
        driver = LocalDriver(
            config.protocol_config(), task, behaviours=behaviours, collusion=collusion, mode="per_peer"
        )
    for step in range(config.steps):
        driver.step(optimizer.params, optimizer.state()).move(optimizer, task, step)
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


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_nothing_left(swarm: FaultySwarm) -> None:
    swarm.until(lambda: not swarm.left(), 10, f"{swarm.left()} left")


def test_attackers_are_banned_and_all_is_as_in_the_simulator(
    data: Path, tmp_path: Path, one_thread: None, capsys: pytest.CaptureFixture[str]
) -> None:
    attack = {"name": "sign_flip", "start": 1}
    config = settings(data, run_id="attackers 3", peers=8, byzantine=3, steps=9, attack=attack)
    digest, head, bans = simulate(config)
    assert bans.keys() == config.attackers()
    with FaultySwarm(config, tmp_path) as swarm:
        swarm.start()
        assert swarm.wait(PATIENCE), swarm.alive()
        check_agreement(swarm, set(range(8)) - bans.keys(), dict.fromkeys(bans, "wrong_gradient"))
        end = swarm.summaries()[0]
        assert (end["digest"], end["ledger"]) == (digest, head)
        assert [swarm.code(peer) for peer in range(8)] == [EXIT_OUT if peer in bans else 0 for peer in range(8)]
        assert swarm.processes[COORDINATOR].exitcode == 0
        summary = json.loads((tmp_path / COORDINATOR / "summary.json").read_text())
        assert (summary["byzantine_banned"], summary["honest_banned"]) == (3, 0) and summary["heads"] == [head]
        # The coordinator has heard everybody that was left at the end.
        seen = metrics(tmp_path / COORDINATOR)
        last = [metrics(tmp_path / peer_folder(peer))[-1] for peer in range(8) if peer not in bans]
        assert [row["step"] for row in seen] == list(range(9))
        assert seen[-1]["sent"] == len(last) * statistics.median_low([row["sent"] for row in last])
        losses = [row["loss"] for row in last if row["loss"] is not None]
        assert seen[-1]["loss"] == statistics.median(losses) == summary["loss"]
        check_nothing_left(swarm)
    capsys.readouterr()
    assert audit([str(tmp_path / peer_folder(0)), "--task", "albert.audit:task_of"]) == 0
    assert capsys.readouterr().out.count("gradient recomputed") == 3


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_swarm_ends_with_whoever_started_it(data: Path, tmp_path: Path, how: signal.Signals) -> None:
    file = tmp_path / "swarm.yaml"
    file.write_text(config_text(settings(data, run_id=f"ends {how.name}", steps=10_000)))
    words = [sys.executable, "-m", "albert.swarm", str(file), "--out", str(tmp_path / "swarm")]
    with warm.started(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as started:
        deadline = time.monotonic() + 150
        while not (tmp_path / "swarm" / peer_folder(0) / "metrics.jsonl").exists():
            assert started.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        processes = psutil.Process(started.pid).children(recursive=True)
        assert len(processes) > 12, processes  # six with a daemon each, and who forks them
        started.send_signal(how)
        assert psutil.wait_procs(processes, 60)[1] == []


def test_peers_and_coordinator_that_are_killed_or_stopped_come_back(data: Path, tmp_path: Path) -> None:
    config = settings(data, run_id="returns", steps=90, protocol={"max_absences": 1000})
    with FaultySwarm(config, tmp_path) as swarm:
        swarm.pace(0.3)
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
        swarm.pace(0.0)

        assert swarm.wait(PATIENCE), swarm.alive()
        check_agreement(swarm, set(range(5)), {})
        assert [process.exitcode for process in swarm.processes.values()] == [0] * 6
        assert all(set(end["signed_by"]) == set(range(5)) for end in swarm.summaries().values())
        summary = json.loads((tmp_path / COORDINATOR / "summary.json").read_text())
        assert summary["heads"] == [swarm.summaries()[0]["ledger"]]
        check_nothing_left(swarm)


def test_whoever_is_lost_in_the_middle_of_a_step_is_removed_alone(data: Path, tmp_path: Path) -> None:
    config = settings(data, run_id="losses", peers=6, steps=20)
    with FaultySwarm(config, tmp_path) as swarm:
        # Who has been heard in the roll call owes the rest of the step.
        swarm.strike("killed", Fault(4, "kill", validator=True, phase="aggregate"))
        swarm.start()
        validator, step = swarm.struck("killed")
        witness = min({0, 1} - {validator})
        swarm.until(lambda: swarm.steps(witness) > step)

        # A worker that has committed, stopped for longer than a deadline: it finds out when it goes on.
        worker = max({2, 3} - {validator})
        swarm.strike("stopped", Fault(step + 2, "stop", peer=worker, phase="aggregate"))
        _, step = swarm.struck("stopped")
        swarm.until(lambda: swarm.steps(witness) > step)
        os.kill(swarm.pid(worker), signal.SIGCONT)

        assert swarm.wait(PATIENCE), swarm.alive()
        check_agreement(swarm, set(range(6)) - {validator, worker}, {validator: "silent", worker: "silent"})
        assert (swarm.code(validator), swarm.code(worker)) == (-signal.SIGKILL, EXIT_OUT)
        assert "out of the run" in swarm.log(peer_folder(worker))
        check_nothing_left(swarm)


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
        assert swarm.wait(PATIENCE), swarm.alive()
        check_agreement(swarm, set(range(5)) - bans.keys(), dict.fromkeys(bans, "wrong_gradient"))
        end = swarm.summaries()[0]
        assert (end["digest"], end["ledger"]) == (digest, head)
        assert "goes on from its checkpoint at step" in swarm.log(peer_folder(0))
        summary = json.loads((tmp_path / COORDINATOR / "summary.json").read_text())
        assert summary["heads"] == [head] and summary["byzantine_banned"] == len(bans)
        check_nothing_left(swarm)


class Hostile:
    """Listens in the place of a peer: takes part in the gathering, then says to each follower what costs memory."""

    SAYS = ("endless header", "huge body", "many bodies", "many frames")

    def __init__(self, node: Node) -> None:
        self.node, self.said, self._turn = node, Counter[str](), 0

    async def serve(self, _: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, Malformed):
            door = (await frames.receive(reader, HELLO, "hello"))[2]
            await frames.send(writer, ("welcome",))
            if door == "status":
                status = json.dumps({"state": "ready", "step": 0, "stored": [0]}).encode()
                await frames.send(writer, ("status", len(status)), [status])
            elif door == "follow":
                kind = self.SAYS[self._turn % len(self.SAYS)]
                self._turn += 1
                self.said[kind] += 1
                await asyncio.wait_for(getattr(self, "_" + kind.replace(" ", "_"))(writer), 2.0)
        writer.close()

    async def _endless_header(self, writer: asyncio.StreamWriter) -> None:
        await pour(writer, b"\xff\xff\xff\xff", FLOOD)

    async def _huge_body(self, writer: asyncio.StreamWriter) -> None:
        await frames.send(writer, (0, 0, "commit", 2**31))
        await pour(writer, b"", FLOOD)

    async def _many_bodies(self, writer: asyncio.StreamWriter) -> None:
        for number in range(FLOOD // AHEAD):
            await frames.send(writer, (5, number, "part", AHEAD), [bytes(AHEAD)])

    async def _many_frames(self, writer: asyncio.StreamWriter) -> None:
        for number in range(100_000):
            await frames.send(writer, (5, number, "x" * 64, 0))


async def pour(writer: asyncio.StreamWriter, first: bytes, size: int) -> None:
    writer.write(first)
    for _ in range(size // 2**18):
        writer.write(bytes(2**18))
        await writer.drain()


async def storm(node: Node, key: bytes) -> int:
    """Open many streams to the doors of `key`, with hellos too long, too deep and never ended; how many were opened."""
    deep = ("btard", 1, "status", "flood", "[" * 60_000, ())
    opened = 0

    async def shout(number: int) -> None:
        nonlocal opened
        with contextlib.suppress(P2PDaemonError, OSError, asyncio.TimeoutError):
            _, writer = await asyncio.wait_for(node.dial(key, PROTOCOL), 5.0)
            opened += 1
            try:
                if number % 3 == 0:
                    await asyncio.wait_for(pour(writer, b"\xff\xff\xff\x7f", 2**20), 1.0)
                elif number % 3 == 1:
                    await asyncio.wait_for(frames.send(writer, deep), 1.0)
                else:
                    writer.write(b"\x10")  # and nothing more
                    await asyncio.sleep(1.0)
            finally:
                writer.close()

    for _ in range(6):
        await asyncio.gather(*(shout(number) for number in range(24)))
    return opened


def noise(address: str) -> None:
    """Bytes that mean nothing, to the port itself."""
    _, _, host, _, port, *_ = address.split("/")
    for size in (1, 10**3, 10**6):
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2) as connection:
            connection.sendall(random.Random(size).randbytes(size))


def memory(pid: int) -> int:
    """Bytes of its own, not of files, that a process holds together with those that it has started."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, KeyError):  # it has ended
            lines = (folder / "status").read_text().splitlines()
            status = {name: value.split()[0] for name, value in (line.split(":", 1) for line in lines) if value.split()}
            if str(pid) in (status["Pid"], status["PPid"]):
                total += 1024 * int(status["RssAnon"])
    return total


def test_hostile_bytes_cost_little_memory_and_no_training(data: Path, tmp_path: Path) -> None:
    """Peer 4 is an attacker that answers all who follow it with floods; a stranger storms the doors of peer 0."""
    deadlines = {"phase": 2.0}
    config = settings(
        data, run_id="flood", steps=25, protocol={"max_absences": 5, "max_away": None}, deadlines=deadlines
    )
    with FaultySwarm(config, tmp_path) as swarm, contextlib.ExitStack() as nodes:
        swarm.start_coordinator()
        for number in range(4):
            swarm.start_trainer(number)

        def join(identity: Identity) -> Node:
            node = Node(identity, initial_peers=[swarm.address]).start()
            nodes.callback(node.close)
            return node

        hostile = Hostile(join(Identity.from_seed(config.run_id, 4)))
        hostile.node.run(hostile.node.listen(PROTOCOL, hostile.serve))
        hostile.node.run(_say_that_it_is_there(hostile.node, config.run_id))
        stranger = join(Identity.from_seed("stranger", 0))
        key = Identity.from_seed(config.run_id, 0).public_key
        address = swarm.until(lambda: stranger.run(meet(stranger, config.run_id)).get(key))[0]
        swarm.until(lambda: all(swarm.steps(number) for number in range(4)), what="the first step is not over")
        before = {number: memory(swarm.pid(number)) for number in range(4)}
        grown = dict.fromkeys(before, 0)

        def over() -> bool:
            for number in grown:
                grown[number] = max(grown[number], memory(swarm.pid(number)) - before[number])
            return len(swarm.alive()) == 1

        storming = stranger.submit(storm(stranger, key))
        noise(address)
        swarm.until(over, 120, what="the training does not go on")
        assert storming.result(60) > 0
        assert hostile.said.keys() == set(Hostile.SAYS)
        assert min(before.values()) > 0 and 0 < max(grown.values()) < FLOOD / 3, grown
        assert swarm.wait(PATIENCE), swarm.alive()
        check_agreement(swarm, set(range(4)), {4: "gone"})
        check_nothing_left(swarm)


async def _say_that_it_is_there(node: Node, run_id: str) -> None:
    node.spawn(announce(node, run_id))
