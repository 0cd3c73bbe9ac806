"""Trainers of a whole swarm as threads of one process, made one after another, for tests of what a peer keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from albert.commands import TASK
from albert.config import BatchConfig, Config, DataConfig, ModelConfig, OptimizerConfig
from btard.swarm.config import NetworkConfig, SwarmConfig
from btard.swarm.deadlines import Deadlines
from btard.swarm.task import TaskSource, load_task
from btard.swarm.trainer import Trainer
from tests.swarm.cohort import Killed

SOURCE = load_task(TASK)


def tiny(data: Path, **changes: Any) -> Config:
    """A swarm of four honest peers with a network of one narrow layer."""
    settings: dict[str, Any] = {
        "run_id": "trainers",
        "peers": 4,
        "steps": 6,
        "threads": 1,
        "checkpoint_every": 2,
        "data": DataConfig(path=str(data)),
        "model": ModelConfig(layers=1, hidden=16, heads=2, intermediate=16, embedding=8),
        "batch": BatchConfig(total=8, per_device=2),
        "optimizer": OptimizerConfig(lr=0.02, warmup_steps=2, schedule_steps=100),
        "protocol": replace(Config().protocol, max_absences=50),
        "deadlines": Deadlines(compute=20, phase=4, message=0.2, uplink=1, give_up=0.5, gather=30),
    }
    return Config(**{**settings, **changes})


class Trainers:
    """A trainer for each of `numbers`, in threads, that meet at the first one that is still there."""

    def __init__(
        self,
        config: SwarmConfig,
        out: Path,
        numbers: Iterable[int] | None = None,
        source: TaskSource = SOURCE,
    ) -> None:
        self.config, self.out, self.source = config, out, source
        self.numbers = list(range(config.peers) if numbers is None else numbers)
        self.trainers: dict[int, Trainer] = {}
        self.ends: dict[int, Any] = {}
        self.lines: dict[int, list[str]] = {number: [] for number in self.numbers}
        self._threads: dict[int, threading.Thread] = {}
        self._expected: int | None = None
        self._arrived = threading.Event()

    def make(self, number: int, **changes: Any) -> Trainer:
        """A new trainer of this number, which knows where to meet the others."""
        others = [t for n, t in self.trainers.items() if n != number and n not in self.ends]
        known = others[0].node.addresses[0] if others else None
        network = replace(self.config.network, initial_peers=known)
        config = replace(self.config, **{"peer": number, "network": network, **changes})
        lines = self.lines.setdefault(number, [])
        trainer = Trainer(config, self.out / f"peer-{number}", self.source, say=lines.append)
        trainer.node.start()
        trainer.node.start = lambda *_: trainer.node  # type: ignore[method-assign]
        trainer._watch = lambda phase: self._watch(number, phase)  # type: ignore[method-assign]
        self.trainers[number] = trainer
        return trainer

    def expect(self, number: int) -> None:
        """Each step takes a second more until trainer `number` takes part in one, so that it doesn't come too late."""
        self._expected = number
        self._arrived.clear()

    def _watch(self, number: int, phase: str) -> None:
        self.trainers[number].phase = phase
        if self._expected is None or phase != "compute":
            return
        if number == self._expected:
            self._arrived.set()
        self._arrived.wait(1.0)

    def start(self, number: int) -> None:
        """Let a trainer run in a thread of its own."""
        self.ends.pop(number, None)
        trainer = self.trainers[number]

        def live() -> None:
            try:
                self.ends[number] = trainer.run()
            except Killed:
                self.ends[number] = "killed"
            except BaseException as error:
                self.ends[number] = error

        self._threads[number] = threading.Thread(target=live, name=f"trainer {number}")
        self._threads[number].start()

    def run(self) -> dict[int, Any]:
        """Make and start all, and wait: number -> summary, or what it ended with."""
        for number in self.numbers:
            self.make(number)
        for number in self.numbers:
            self.start(number)
        return self.wait()

    def wait(self, number: int | None = None) -> dict[int, Any]:
        for thread in list(self._threads.values()) if number is None else [self._threads[number]]:
            thread.join(120)
            assert not thread.is_alive(), f"{thread.name} hangs in {self.trainers}"
        return self.ends

    def kill_at(self, number: int, step: int, phase: str) -> None:
        """End a trainer, as kill -9 does, when it comes to `phase` of `step`; the others expect it again."""

        def watch(reached: str) -> None:
            trainer = self.trainers[number]
            if (trainer.peer.t, reached) == (step, phase):
                self.expect(number)
                trainer.node.p2p._child.kill()
                raise Killed
            self._watch(number, reached)

        self.trainers[number]._watch = watch  # type: ignore[method-assign]

    def close(self) -> None:
        for trainer in self.trainers.values():
            trainer.node.close()


def same(ends: dict[int, Any], keys: Iterable[str] = ("digest", "ledger")) -> bool:
    """Whether all summaries agree."""
    return all(len({str(end[key]) for end in ends.values()}) == 1 for key in keys)


Watch = Callable[[str], None]
Network = NetworkConfig
