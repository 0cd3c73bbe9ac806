"""Whole swarms in one process: a thread and a libp2p daemon for each peer, faults placed by peer, step and phase.

The daemons are kept for the next cohort with the same keys, but for those of a cohort in which one was killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from btard.attacks.registry import make_attack
from btard.drivers.history import ParameterHistory
from btard.drivers.local import LocalDriver
from btard.drivers.loop import Fallen, StepResult
from btard.drivers.past import Past
from btard.drivers.trail import Trail
from btard.protocol.behaviour import HONEST, Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.identity import Identity, Roster
from btard.protocol.peer import Peer
from btard.swarm.deadlines import Deadlines
from btard.swarm.doors import Doors
from btard.swarm.driver import OutOfStep, SwarmDriver
from btard.swarm.node import Node
from btard.task import QuadraticTask, TooLate, never
from tests.swarm.daemons import DAEMONS, Lodger

RUN = "cohort"
QUICK = Deadlines(compute=20.0, phase=3.0, message=0.2, uplink=1, give_up=0.5)
LR = 0.1


class Killed(BaseException):
    """Ends a peer's thread at once, as kill -9 ends a process."""


@dataclass(frozen=True)
class Fault:
    """What happens to `peer` when it comes to `phase` of `step`: called in its thread, with the peer's member."""

    peer: int
    step: int
    phase: str
    happen: Callable[[Member], None]


class Quadratic(QuadraticTask):
    """The simulator's quadratic; `slow` seconds before each gradient of training."""

    slow = 0.0

    def gradients(
        self,
        params: torch.Tensor,
        requests: Sequence[Compute],
        out: torch.Tensor,
        *,
        workers: int = 1,
        too_late: Callable[[], bool] = never,
    ) -> None:
        until = time.monotonic() + self.slow
        while time.monotonic() < until:
            if too_late():
                raise TooLate
            time.sleep(0.01)
        super().gradients(params, requests, out)


@dataclass
class Member:
    """One peer: its place in the swarm, and how it ended."""

    driver: SwarmDriver
    node: Node
    task: Quadratic
    params: torch.Tensor
    end: BaseException | None = None
    at: list[tuple[int, str]] = field(default_factory=list)
    active: list[tuple[int, ...]] = field(default_factory=list)

    def kill(self) -> None:
        """As kill -9 of its process: the daemon ends, nobody says goodbye."""
        DAEMONS.kill(self.node)
        raise Killed


def moved(params: torch.Tensor, result: StepResult) -> torch.Tensor:
    """The parameters after a step."""
    return params - LR * result.gradient if result.back_to is None else result.state["parameters"].clone()


def attackers_of(attack: str | None, count: int, peers: int, seed: int) -> tuple[frozenset[int], dict[str, Any]]:
    members = frozenset(1 + (seed + 2 * i) % (peers - 1) for i in range(count)) if attack else frozenset()
    assert len(members) == (count if attack else 0)
    return members, {}


class Cohort:
    """`peers` peers, `byzantine` of them with `attack`; `run` takes them `steps` steps on."""

    def __init__(
        self,
        *,
        peers: int = 5,
        byzantine: int = 0,
        attack: str | None = None,
        options: Mapping[str, Any] | None = None,
        d: int = 101,
        seed: int = 0,
        start: int = 1,
        deadlines: Deadlines = QUICK,
        faults: tuple[Fault, ...] = (),
        **settings: Any,
    ) -> None:
        self.attackers, _ = attackers_of(attack, byzantine, peers, seed)
        self.attack, self.options, self.start, self.seed = attack, dict(options or {}), start, seed
        self.config = ProtocolConfig(**{"peers": peers, "byzantine": byzantine, "run_id": f"{RUN} {seed}", **settings})
        self.d, self.faults, self.deadlines = d, faults, deadlines
        self.identities = [Identity.from_seed(self.config.run_id, peer) for peer in range(peers)]
        self.roster = Roster(tuple(identity.public_key for identity in self.identities))
        self.members: list[Member] = []
        DAEMONS.renew()
        for peer in range(peers):
            known = self.members[0].node.addresses[:1] if self.members else ()
            self.members.append(self._member(peer, Lodger(self.identities[peer], initial_peers=known).start()))

    def _member(self, number: int, node: Node) -> Member:
        behaviour, collusion = self.behaviour(number)
        peer = Peer(number, self.identities[number], self.roster, self.config, self.d, behaviour)
        doors = Doors(node, self.config.run_id, {"a": 1})
        task = Quadratic(self.d)
        history = ParameterHistory(self.d, 2)
        trail = Trail(self.config, task)
        driver = SwarmDriver(peer, task, node, doors, self.deadlines, Past(history, trail), collusion=collusion)
        member = Member(driver, node, task, torch.ones(self.d))
        driver.watch = lambda phase: self._watch(member, phase)
        node.run(doors.open())
        return member

    def behaviour(self, number: int) -> tuple[Behaviour, Collusion | None]:
        if self.attack is None or number not in self.attackers:
            return HONEST, None
        collusion = Collusion(self.attackers, self.config.peers, self.seed)
        return make_attack(self.attack, collusion, start=self.start, **self.options), collusion

    def _watch(self, member: Member, phase: str) -> None:
        peer = member.driver.peer
        member.at.append((peer.t, phase))
        for fault in self.faults:
            if (fault.peer, fault.step, fault.phase) == (peer.id, peer.t, phase):
                fault.happen(member)

    def run(self, steps: int) -> Cohort:
        """Let every peer that has not ended do `steps` more steps, at once."""

        def live(member: Member) -> None:
            try:
                for _ in range(steps):
                    result = member.driver.step(member.params)
                    member.params = moved(member.params, result)
                    member.active.append(result.active)
            except (Fallen, OutOfStep, Killed, Exception) as error:
                member.end = error

        threads = [threading.Thread(target=live, args=(m,)) for m in self.members if m.end is None]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self

    def simulate(self, steps: int) -> tuple[torch.Tensor, LocalDriver]:
        """The same in the simulator: parameters and driver at the end."""
        collusion = Collusion(self.attackers, self.config.peers, self.seed)
        behaviours: dict[int, Behaviour] = {
            peer: make_attack(str(self.attack), collusion, start=self.start, **self.options)
            for peer in sorted(self.attackers)
        }
        driver = LocalDriver(
            self.config, QuadraticTask(self.d), behaviours=behaviours, collusion=collusion, mode="per_peer"
        )
        params = torch.ones(self.d)
        for _ in range(steps):
            params = moved(params, driver.step(params))
        return params, driver

    @property
    def honest(self) -> list[Member]:
        return [m for m in self.members if m.driver.peer.id not in self.attackers]

    @property
    def done(self) -> list[Member]:
        """Those who came to the end."""
        return [member for member in self.members if member.end is None]

    def removed(self, witness: int = 0) -> dict[int, str]:
        """Peer -> why it is out, by the ledger of `witness`."""
        entries = self.members[witness].driver.peer.ledger.entries
        return {peer: entry.kind for entry in entries for peer in entry.peers}

    def close(self) -> None:
        for member in self.members:
            member.node.close()

    def __enter__(self) -> Cohort:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
