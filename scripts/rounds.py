"""Timed rounds of a swarm's peers, and of hivemind's averaging, each peer in a process of its own."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from btard.drivers.history import ParameterHistory
from btard.drivers.letters import Letters
from btard.drivers.loop import Heard
from btard.drivers.past import Past
from btard.drivers.trail import Trail
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import stream
from btard.protocol.identity import Identity, Roster
from btard.protocol.peer import Peer
from btard.swarm.deadlines import Deadlines
from btard.swarm.doors import Doors
from btard.swarm.driver import SwarmDriver
from btard.swarm.node import Node
from scripts import netns

RUN = "rounds"
ROUNDS = 5
"""Number of timed rounds, after one that is not timed."""
PATIENCE = 300.0
"""Seconds that a round of hivemind's may take."""


class Ready:
    """A task whose gradient exists already."""

    def __init__(self, d: int, peer: int) -> None:
        self.d = d
        self._row = torch.from_numpy(stream("rounds", peer).standard_normal(d, dtype="float32"))

    def gradients(self, params: torch.Tensor, requests: Any, out: torch.Tensor, **_: Any) -> None:
        out[0] = self._row


@dataclass(frozen=True)
class Place:
    """The place of a peer: the network namespace at this path, and its address in it."""

    host: str = "127.0.0.1"
    namespace: str | None = None

    def enter(self) -> None:
        if self.namespace is not None:
            netns.enter(self.namespace)


class Counting(SwarmDriver):
    """Counts how often this peer says something and waits for what the others say, by phase."""

    delays: Counter[str]

    def talk(self, step: int, letters: Mapping[int, Letters]) -> Heard:
        said = letters[self.peer.id]
        if not said.settled:
            self.delays[said.phase] += 1
        return super().talk(step, letters)


def kind(phase: str) -> str:
    """What a phase of messages is for, as the delays are listed."""
    name, _, rest = phase.partition("/")
    return f"{name}, {rest.split('/')[-2 if 'relay' in rest else -1]}" if "compare" in rest or "relay" in rest else name


def btard_peer(number: int, peers: int, d: int, relays: int, place: Place, pipe: Any) -> None:
    """One peer in its own process: tells its address, then the seconds of each phase of each round, and the delays."""
    place.enter()
    torch.set_num_threads(1)
    identities = [Identity.from_seed(RUN, peer) for peer in range(peers)]
    config = ProtocolConfig(peers=peers, byzantine=most(peers), relays=relays, validators=0, run_id=RUN)
    known = pipe.recv()
    node = Node(identities[number], host=place.host, initial_peers=known).start()
    pipe.send(node.addresses[:1])
    pipe.recv()
    roster = Roster(tuple(identity.public_key for identity in identities))
    doors = Doors(node, RUN, {})
    limits = Deadlines(compute=600, phase=600, message=10, uplink=8, give_up=60)
    peer, task = Peer(number, identities[number], roster, config, d), Ready(d, number)
    driver = Counting(peer, task, node, doors, limits, Past(ParameterHistory(d, 2), Trail(config, task)))
    node.run(doors.open())
    params, results = torch.zeros(d), []
    for _ in range(1 + ROUNDS):
        pipe.recv()
        driver.delays = Counter()
        started = time.perf_counter()
        result = driver.step(params)
        results.append({"total": time.perf_counter() - started, "sent": result.sent[number], **result.seconds})
        pipe.send(time.perf_counter() - started)
    assert not result.removed
    pipe.send((results[1:], dict(driver.delays)))
    pipe.recv()
    node.close()


def most(peers: int) -> int:
    """The largest number of Byzantine peers among this many."""
    return (peers - 1) // 2


def hivemind_peer(number: int, peers: int, d: int, relays: int, place: Place, pipe: Any) -> None:
    """One averager of hivemind in its own process, as its documentation sets it up for a group of a known size."""
    import hivemind

    place.enter()
    multiprocessing.set_start_method("fork", force=True)  # as hivemind starts its own processes
    torch.set_num_threads(1)
    known = pipe.recv()
    dht = hivemind.DHT(initial_peers=known, host_maddrs=[f"/ip4/{place.host}/tcp/0"], start=True)
    pipe.send([str(address) for address in dht.get_visible_maddrs() if place.host in str(address)][:1])
    pipe.recv()
    averager = hivemind.averaging.DecentralizedAverager(
        [torch.from_numpy(stream("rounds", number).standard_normal(d, dtype="float32"))],
        dht,
        prefix=RUN,
        target_group_size=peers,
        min_group_size=peers,
        min_matchmaking_time=3.0,
        request_timeout=2.0,
        initial_group_bits="",
        start=True,
    )
    results = []
    for _ in range(1 + ROUNDS):
        pipe.recv()
        started = time.perf_counter()
        control = averager.step(wait=False, timeout=PATIENCE)
        begun = None
        while not control.done():
            if begun is None and control.stage.name == "RUNNING_ALLREDUCE":
                begun = time.perf_counter()
            time.sleep(0.002)
        control.result()
        ended = time.perf_counter()
        results.append({"total": ended - started, "averaging": ended - (begun or started)})
        pipe.send(ended - started)
    pipe.send((results[1:], {}))
    pipe.recv()
    averager.shutdown()
    dht.shutdown()


Seconds = list[list[dict[str, float]]]
"""[peers][rounds] of seconds by phase."""


def measure(work: Any, peers: int, d: int, relays: int, line: netns.Line) -> tuple[Seconds, dict[str, int]]:
    """The rounds of all peers, and the delays of the last one by phase."""
    with ExitStack() as stack:
        places = [Place()] * peers
        if line.simulated:
            wire = netns.Wire(peers, delay=line.delay, loss=line.loss, rate=line.rate * 1e6 / 8)
            stack.enter_context(wire)
            places = [Place(*found) for found in zip(wire.hosts, wire.paths, strict=True)]
        return _measure(work, peers, d, relays, places)


def _measure(work: Any, peers: int, d: int, relays: int, places: list[Place]) -> tuple[Seconds, dict[str, int]]:
    # A process that is forked from this one would have the wire's thread's locks, but not the thread.
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hivemind", "btard.swarm.driver"])
    pipes, processes = [], []
    for number in range(peers):
        mine, theirs = context.Pipe()
        process = context.Process(target=work, args=(number, peers, d, relays, places[number], theirs))
        process.start()
        pipes.append(mine)
        processes.append(process)
    try:
        known: list[str] = []
        for pipe in pipes:  # all meet at the first one
            pipe.send(known)
            address = pipe.recv()
            known = known or address
        for pipe in pipes:
            pipe.send("meet")
        for _ in range(1 + ROUNDS):
            for pipe in pipes:
                pipe.send("go")
            for pipe in pipes:
                pipe.recv()
        results = [pipe.recv() for pipe in pipes]
        for pipe in pipes:
            pipe.send("end")
        for process in processes:
            process.join(20)
        return [seconds for seconds, _ in results], results[0][1]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()


def slowest(results: list[list[dict[str, float]]], key: str) -> float:
    """Median over the rounds of the largest value among the peers."""
    return statistics.median(max(peer[i].get(key, 0.0) for peer in results) for i in range(ROUNDS))


def case(peers: int, d: int, relays: list[int], line: netns.Line) -> list[dict[str, Any]]:
    """BTARD with each number of `relays`, and hivemind, for one number of peers and of parameters."""
    theirs, _ = measure(hivemind_peer, peers, d, 0, line)
    rows = []
    for count in relays:
        ours, delays = measure(btard_peer, peers, d, count, line)
        kinds: Counter[str] = Counter()
        for phase, number in delays.items():
            kinds[kind(phase)] += number
        rows.append(
            {
                "peers": peers,
                "d": d,
                "relays": count,
                "delays": dict(kinds),
                "btard": slowest(ours, "total"),
                "phases": {key: slowest(ours, key) for key in ours[0][0] if key not in ("total", "sent")},
                "bytes": slowest(ours, "sent"),
                "hivemind": slowest(theirs, "averaging"),
                "hivemind_with_matchmaking": slowest(theirs, "total"),
            }
        )
    return rows
