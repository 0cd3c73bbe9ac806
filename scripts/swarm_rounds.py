"""`python -m scripts.swarm_rounds --out FILE.json`: how long a round of the swarm takes, beside hivemind's averaging.

Every peer is a process with its own libp2p daemon on loopback and one kernel thread. Gradients cost nothing here: what
is timed is the protocol (hashes, transfers, CenteredClip, coin, reports, verification). hivemind averages as many
tensors of the same size among as many peers in the same run, right after. Medians over rounds of the slowest peer.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from btard.boundary import Parser, output_file, program
from btard.drivers.history import ParameterHistory
from btard.drivers.trail import Trail
from btard.harness import tables
from btard.harness.progress import track
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import stream
from btard.protocol.identity import Identity, Roster
from btard.protocol.peer import Peer
from btard.swarm.deadlines import Deadlines
from btard.swarm.doors import Doors
from btard.swarm.driver import SwarmDriver
from btard.swarm.node import Node

CASES = tuple((peers, d) for peers in (4, 8, 16) for d in (1_000_000, 10_000_000, 18_000_000))
RUN = "rounds"
ROUNDS = 5
"""Timed, after one that is not."""


class Ready:
    """A task whose gradient is there already."""

    def __init__(self, d: int, peer: int) -> None:
        self.d = d
        self._row = torch.from_numpy(stream("rounds", peer).standard_normal(d, dtype="float32"))

    def gradients(self, params: torch.Tensor, requests: Any, out: torch.Tensor, **_: Any) -> None:
        out[0] = self._row


def btard_peer(number: int, peers: int, d: int, relays: int, pipe: Any) -> None:
    """One peer in its own process: tells its address, then the seconds of each phase of each round."""
    torch.set_num_threads(1)
    identities = [Identity.from_seed(RUN, peer) for peer in range(peers)]
    config = ProtocolConfig(peers=peers, byzantine=relays, validators=0, run_id=RUN)
    known = pipe.recv()
    node = Node(identities[number], initial_peers=known).start()
    pipe.send(node.addresses[:1])
    pipe.recv()
    roster = Roster(tuple(identity.public_key for identity in identities))
    doors = Doors(node, RUN, {})
    limits = Deadlines(compute=600, phase=600, message=10, uplink=8, give_up=60)
    peer, task = Peer(number, identities[number], roster, config, d), Ready(d, number)
    driver = SwarmDriver(peer, task, node, doors, limits, ParameterHistory(d, 2), Trail(config, task))
    node.run(doors.open())
    params, results = torch.zeros(d), []
    for _ in range(1 + ROUNDS):
        pipe.recv()
        started = time.perf_counter()
        result = driver.step(params)
        results.append({"total": time.perf_counter() - started, "sent": result.sent[number], **result.seconds})
        pipe.send(time.perf_counter() - started)
    pipe.send(results[1:])
    pipe.recv()
    node.close()


def hivemind_peer(number: int, peers: int, d: int, relays: int, pipe: Any) -> None:
    """One averager of hivemind in its own process, as its documentation sets it up for a group of a known size."""
    import hivemind

    torch.set_num_threads(1)
    known = pipe.recv()
    dht = hivemind.DHT(initial_peers=known, start=True)
    pipe.send([str(address) for address in dht.get_visible_maddrs()][:1])
    pipe.recv()
    averager = hivemind.averaging.DecentralizedAverager(
        [torch.from_numpy(stream("rounds", number).standard_normal(d, dtype="float32"))],
        dht,
        prefix=RUN,
        target_group_size=peers,
        min_group_size=peers,
        min_matchmaking_time=1.5,
        request_timeout=1.0,
        initial_group_bits="",
        start=True,
    )
    results = []
    for _ in range(1 + ROUNDS):
        pipe.recv()
        started = time.perf_counter()
        control = averager.step(wait=False, timeout=120)
        begun = None
        while not control.done():
            if begun is None and control.stage.name == "RUNNING_ALLREDUCE":
                begun = time.perf_counter()
            time.sleep(0.002)
        control.result()
        ended = time.perf_counter()
        results.append({"total": ended - started, "averaging": ended - (begun or started)})
        pipe.send(ended - started)
    pipe.send(results[1:])
    pipe.recv()
    averager.shutdown()
    dht.shutdown()


def measure(work: Any, peers: int, d: int, relays: int) -> list[list[dict[str, float]]]:
    """The rounds of all peers: [peers][rounds] of seconds by phase."""
    context: Any = multiprocessing.get_context("fork" if work is hivemind_peer else "forkserver")
    pipes, processes = [], []
    for number in range(peers):
        mine, theirs = context.Pipe()
        process = context.Process(target=work, args=(number, peers, d, relays, theirs))
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
        return results
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()


def slowest(results: list[list[dict[str, float]]], key: str) -> float:
    """Median over the rounds of the largest value among the peers."""
    return statistics.median(max(peer[i].get(key, 0.0) for peer in results) for i in range(ROUNDS))


def case(peers: int, d: int) -> dict[str, Any]:
    """Both, for one number of peers and of parameters."""
    ours = measure(btard_peer, peers, d, 0)
    theirs = measure(hivemind_peer, peers, d, 0)
    phases = [key for key in ours[0][0] if key not in ("total", "sent")]
    return {
        "peers": peers,
        "d": d,
        "btard": slowest(ours, "total"),
        "phases": {phase: slowest(ours, phase) for phase in phases},
        "bytes": slowest(ours, "sent"),
        "hivemind": slowest(theirs, "averaging"),
        "hivemind_with_matchmaking": slowest(theirs, "total"),
    }


@program("the same command begins again")
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m scripts.swarm_rounds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE.json")
    parser.add_argument("--cases", nargs="+", metavar="PEERSxD", help="such as 4x1000000; by default all")
    arguments = parser.parse_args(argv)
    chosen = [tuple(map(int, word.split("x"))) for word in arguments.cases] if arguments.cases else CASES
    found = []
    for peers, d in track(chosen, "rounds", unit="cases"):
        found.append(case(peers, d))
        content = {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cases": found,
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    columns = (
        *("peers", "parameters", "BTARD, s", "hivemind averaging, s", "ratio", "with matchmaking, s"),
        "MB sent per peer",
    )
    rows = [
        [str(row["peers"]), f"{row['d']:,}"]
        + [f"{value:.2f}" for value in (row["btard"], row["hivemind"], row["btard"] / row["hivemind"])]
        + [f"{row['hivemind_with_matchmaking']:.2f}", f"{row['bytes'] / 1e6:.1f}"]
        for row in found
    ]
    arguments.out.with_suffix(".md").write_text(tables.markdown(columns, rows) + "\n", encoding="utf-8")
    tables.show("", columns, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
