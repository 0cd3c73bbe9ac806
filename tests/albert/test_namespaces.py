"""Swarms whose peers are in network namespaces of their own, on a wire that delays, loses and parts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hivemind.p2p import P2PDaemonError
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from albert.config import Config
from btard.protocol.identity import Identity
from btard.swarm.keys import peer_id_of
from btard.swarm.local import COORDINATOR
from btard.swarm.node import Node, Relaying
from scripts.netns import Wire, enter, reason_not_to
from tests.albert.faulty import Fault, FaultySwarm, settings
from tests.albert.test_swarm import check_agreement, check_nothing_left

_REASON = reason_not_to()
PORT = 31337
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))


def test_the_wire_delays_loses_and_parts() -> None:
    got: list[tuple[bytes, float]] = []
    sent: dict[int, float] = {}

    def listen(wire: Wire, ready: threading.Event) -> None:
        enter(wire.paths[1])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ear:
            ear.bind((wire.hosts[1], 7))
            ear.settimeout(5)
            ready.set()
            while (said := ear.recv(100)) != b"end":
                got.append((said, time.monotonic()))

    def speak(wire: Wire) -> None:
        enter(wire.paths[0])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mouth:

            def say(words: bytes) -> float:
                mouth.sendto(words, (wire.hosts[1], 7))
                return time.monotonic()

            for number in range(200):
                sent[number] = say(bytes([number]))
            while wire.carried + wire.lost < 200:
                time.sleep(0.01)
            wire.part({1})
            while wire.stopped == 0:
                say(b"parted")
                time.sleep(0.01)
            wire.part(())
            wire.loss = 0.0
            say(b"end")

    with Wire(2, delay=0.05, loss=0.1) as wire:
        ready = threading.Event()
        listener = threading.Thread(target=listen, args=(wire, ready))
        listener.start()
        assert ready.wait(5)
        speaker = threading.Thread(target=speak, args=(wire,))
        speaker.start()
        speaker.join(10)
        listener.join(10)
        numbers = [said[0] for said, _ in got]
        assert b"parted" not in [said for said, _ in got]
        assert 150 < len(numbers) < 200 and numbers == sorted(numbers) and wire.lost == 200 - len(numbers)
        assert all(at - sent[said[0]] > 0.045 for said, at in got)


@pytest.mark.timeout(360)
def test_peers_over_a_slow_and_lossy_wire_agree(data: Path, tmp_path: Path) -> None:
    config = settings(data, run_id="wire", steps=8, attack={"name": "sign_flip", "start": 1})
    with Wire(6, delay=0.02, loss=0.01) as wire, FaultySwarm(config, tmp_path, wire) as swarm:
        swarm.start()
        assert swarm.wait(150), swarm.alive()
        ends = swarm.summaries()
        assert wire.lost > 0 and wire.carried > 1000
        bans = {ban["peer"]: ban["kind"] for ban in ends[0]["bans"]}
        assert bans in ({}, dict.fromkeys(config.attackers(), "wrong_gradient"))
        check_agreement(swarm, set(range(5)) - bans.keys(), bans)
        check_nothing_left(swarm)


@pytest.mark.timeout(360)
def test_a_minority_that_is_cut_off_stops_and_comes_back(data: Path, tmp_path: Path) -> None:
    deadlines = {"compute": 5.0, "phase": 3.0}
    config = settings(data, run_id="parted", peers=6, steps=40, protocol={"max_absences": 1000}, deadlines=deadlines)
    with Wire(7, delay=0.005) as wire, FaultySwarm(config, tmp_path, wire) as swarm:
        minority = (4, 5)
        for peer in minority:
            swarm.strike(f"attending-{peer}", Fault(3, "attend", peer=peer))
        swarm.start()
        steps = {swarm.struck(f"attending-{peer}")[1] for peer in minority}
        wire.part({1 + peer for peer in minority})
        for peer in minority:
            swarm.let_go(f"attending-{peer}")
        away = max(steps)
        swarm.until(lambda: swarm.steps(0) > away + 3, what="the majority does not go on")
        stopped = [swarm.steps(peer) for peer in minority]
        assert max(stopped) <= away + 1, "the minority went on alone"
        swarm.pace(1.0, [0, 1, 2, 3])
        wire.part(())
        # They catch up by what the others still keep of the last steps, or by asking for their state.
        swarm.until(lambda: min(map(swarm.worked, minority)) > away + 3, 100, "the minority does not come back")
        swarm.pace(0.0)
        assert swarm.wait(150), swarm.alive()
        assert wire.stopped > 0
        check_agreement(swarm, set(range(6)), {})
        assert all(set(end["signed_by"]) == set(range(6)) for end in swarm.summaries().values())
        check_nothing_left(swarm)


class RelayedSwarm(FaultySwarm):
    """Who is behind a router of the wire uses the coordinator and the first other trainer as relays."""

    def start(self, timeout: float = 120.0) -> RelayedSwarm:
        assert self.wire is not None
        behind = {number - 1 for number in self.wire.natted}
        self._second = min(set(range(self.config.peers)) - behind)
        self.start_coordinator(timeout)
        for peer in sorted(set(range(self.config.peers)) - behind):
            self.start_trainer(peer)
        # A relay that is not there yet is looked for again after half a minute.
        self.until(lambda: f"peer {self._second}: " in self.log(f"peer-{self._second:02d}"))
        for peer in sorted(behind):
            self.start_trainer(peer)
        return self

    def _launch(self, name: str, config: Config) -> None:
        assert self.wire is not None
        behind = name != COORDINATOR and 1 + int(name.removeprefix("peer-")) in self.wire.natted
        network = replace(config.network, relay="use" if behind else "serve", port=PORT)
        if behind:
            key = Identity.from_seed(config.run_id, self._second).public_key
            address = f"/ip4/{self.wire.hosts[1 + self._second]}/tcp/{PORT}/p2p/{peer_id_of(key)}"
            network = replace(network, initial_peers=f"{self.address},{address}")
        super()._launch(name, replace(config, network=network))


def test_a_router_lets_in_only_what_was_asked_for() -> None:
    answers: list[bytes] = []

    def ask(wire: Wire, number: int, other: int) -> None:
        """Say hello to `other`, and hear whether it answers."""
        enter(wire.paths[number])
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as mouth:
            mouth.settimeout(0.5)
            try:
                mouth.connect((wire.outside[other], 7))
                mouth.sendall(bytes(100_000))
                answers.append(mouth.recv(100))
            except TimeoutError:
                answers.append(b"")

    def listen(wire: Wire, number: int, ready: threading.Event) -> None:
        """Tell whoever comes from where it came."""
        enter(wire.paths[number])
        with socket.create_server((wire.hosts[number], 7)) as ear:
            ear.settimeout(1.0)
            ready.set()
            try:
                stream, (ip, _) = ear.accept()
            except TimeoutError:
                return
            with stream:
                left = 100_000
                while left:
                    left -= len(stream.recv(left))
                stream.sendall(ip.encode())

    for asks, hears in ((1, 0), (0, 1), (1, 2)):
        with Wire(3, natted=(1, 2)) as wire:
            ready = threading.Event()
            threads = [threading.Thread(target=listen, args=(wire, hears, ready))]
            threads[0].start()
            assert ready.wait(5)
            threads.append(threading.Thread(target=ask, args=(wire, asks, hears)))
            threads[1].start()
            for thread in threads:
                thread.join(10)
            assert (wire.refused > 0) == (hears in wire.natted)
            assert answers.pop() == (wire.outside[asks].encode() if hears == 0 else b"")


def test_a_relay_carries_any_number_of_bytes_and_is_found_again() -> None:
    """Of two nodes behind routers; the daemon's own relay cuts a connection after 128 KiB."""
    identities = [Identity.from_seed("relay", number) for number in range(3)]

    def start(wire: Wire, number: int) -> Node:
        enter(wire.paths[number])
        relay = f"/ip4/{wire.hosts[0]}/tcp/{PORT}/p2p/{peer_id_of(identities[0].public_key)}"
        role: Relaying = "use" if number else "serve"
        known = [relay] if number else []
        return Node(identities[number], host=wire.hosts[number], port=PORT, initial_peers=known, relay=role).start()

    async def echo(_: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def ask(node: Node, other: int, size: int) -> bytes:
        reader, writer = await node.dial(identities[other].public_key, "/echo")
        try:
            writer.write(bytes(size))
            return await asyncio.wait_for(reader.readexactly(size), 20)
        finally:
            writer.close()

    def answers(node: Node, other: int) -> bool:
        try:
            return node.run(ask(node, other, 100)) == bytes(100)
        except (P2PDaemonError, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            return False

    def until(holds: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    # A node's thread and daemon are in the namespace of the thread that starts it.
    with Wire(3, natted=(1, 2)) as wire, contextlib.ExitStack() as threads, contextlib.ExitStack() as open_nodes:
        places = [threads.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]
        nodes = [places[number].submit(start, wire, number).result() for number in range(3)]
        for node in nodes[1:]:
            open_nodes.callback(node.close)
            node.run(node.listen("/echo", echo))
        until(lambda: all([answers(nodes[1], 2), answers(nodes[2], 1)]), 20)
        assert nodes[1].run(ask(nodes[1], 2, 3_000_000)) == bytes(3_000_000)
        nodes[0].close()
        until(lambda: not answers(nodes[1], 2), 10)
        open_nodes.callback(places[0].submit(start, wire, 0).result().close)
        until(lambda: answers(nodes[1], 2), 60)
        until(lambda: answers(nodes[2], 1), 20)
        assert wire.refused == 0, "somebody dials addresses that only work inside"


@pytest.mark.timeout(360)
def test_peers_behind_different_routers_train_through_relays(data: Path, tmp_path: Path) -> None:
    config = settings(data, run_id="relayed", peers=4, steps=8)
    with Wire(5, delay=0.005, natted=(1, 3)) as wire, RelayedSwarm(config, tmp_path, wire) as swarm:
        swarm.strike("attending", Fault(2, "attend", peer=0))
        swarm.start()
        swarm.struck("attending")
        swarm.processes[COORDINATOR].kill()  # and one of the two relays with it
        swarm.let_go("attending")
        assert swarm.wait(100), swarm.alive()
        check_agreement(swarm, set(range(4)), {})
        assert all(set(end["signed_by"]) == set(range(4)) for end in swarm.summaries().values())
        assert wire.refused == 0, "somebody dials addresses that only work inside"
        check_nothing_left(swarm)
