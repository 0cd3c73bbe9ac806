"""A trainer that faults strike, placed by peer, step, phase and role: the process of `FaultySwarm`.

A fault is a file in the swarm's folder. It strikes once: whoever carries it out first renames the file.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from albert.commands import TASK
from albert.config import BatchConfig, Config, DataConfig, ModelConfig, OptimizerConfig
from btard.swarm import commands, trainer
from btard.swarm.config import AttackConfig
from btard.swarm.deadlines import Deadlines
from btard.swarm.local import COORDINATOR, Swarm
from scripts.netns import Wire, enter

FAULTS, NAMESPACES, PACE = "faults", "namespaces", "pace"
SWARM = "BTARD_TEST_SWARM"
"""Names the swarm in the environment of all that its processes start."""
ATTEND = 60.0
"""Seconds that a peer attends for."""


@dataclass(frozen=True)
class Fault:
    """What strikes `peer` (None: whoever is first to fit) in `phase` of step `step`, or of a later one if it was away.

    `action`: kill, stop (as kill -9 and kill -STOP) or attend: wait until the test says `let_go`.
    """

    step: int
    action: str
    peer: int | None = None
    phase: str = "compute"
    validator: bool = False
    """Whether it strikes a validator; otherwise a worker."""


class FaultyTrainer(trainer.Trainer):
    """A trainer that looks for faults whenever it comes to a phase."""

    def _watch(self, phase: str) -> None:
        super()._watch(phase)
        if phase == "compute" and (self.out.parent / PACE).exists():
            pace = json.loads((self.out.parent / PACE).read_text(encoding="utf-8"))
            time.sleep(pace["seconds"] if pace["peers"] is None or self.peer.id in pace["peers"] else 0.0)
        for file in sorted((self.out.parent / FAULTS).glob("*.json")):
            try:
                fault = Fault(**json.loads(file.read_text(encoding="utf-8")))
                fits = fault.peer in (None, self.peer.id) and self.peer.t >= fault.step and phase == fault.phase
                if not fits or fault.validator != (self.peer.id in self.peer.assignments):
                    continue
                struck = file.with_name(f"{file.stem}.{self.peer.id}.{self.peer.t}.struck")
                file.rename(struck)
            except FileNotFoundError:
                continue  # another peer was first
            if fault.action == "attend":
                deadline = time.monotonic() + ATTEND
                while struck.exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
            else:
                os.kill(os.getpid(), signal.SIGKILL if fault.action == "kill" else signal.SIGSTOP)


class FaultySwarm(Swarm):
    """A swarm whose trainers can be struck."""

    entry = "tests.albert.faulty"

    def __init__(self, config: Config, out: Path, wire: Wire | None = None) -> None:
        """On a `wire` the coordinator has its first namespace, and the trainers the next ones."""
        super().__init__(config, out, TASK)
        self.wire = wire

    def pace(self, seconds: float, peers: Sequence[int] | None = None) -> None:
        """Have every step take so much longer from now on: so that the run is not over before the faults are.

        Without `peers` all of them work slower: then whoever is behind can never catch up by working.
        """
        temporary = self.out / f".{PACE}"
        temporary.write_text(json.dumps({"seconds": seconds, "peers": peers}), encoding="utf-8")
        temporary.rename(self.out / PACE)

    def strike(self, name: str, fault: Fault) -> None:
        """Place a fault, named for `struck`."""
        folder = self.out / FAULTS
        folder.mkdir(exist_ok=True)
        temporary = folder / f".{name}"
        temporary.write_text(json.dumps(asdict(fault)), encoding="utf-8")
        temporary.rename(folder / f"{name}.json")

    def struck(self, name: str, timeout: float = 60.0) -> tuple[int, int]:
        """Wait until a fault has struck: (peer, step)."""
        found = self.until(lambda: list((self.out / FAULTS).glob(f"{name}.*.struck")), timeout, f"nobody {name}")
        peer, step = found[0].name.split(".")[1:3]
        return int(peer), int(step)

    def let_go(self, name: str) -> None:
        """Let whoever attends go on."""
        for file in (self.out / FAULTS).glob(f"{name}.*.struck"):
            file.unlink()

    def until(self, holds: Callable[[], Any], timeout: float = 60.0, what: str = "") -> Any:
        """Wait until `holds()` is true of something, and return it. AssertionError, with all logs, if it is not."""
        deadline = time.monotonic() + timeout
        while not (found := holds()):
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {name} ---\n{self.log(name)[-3000:]}" for name in self.processes)
                raise AssertionError(f"{what or holds} after {timeout:g} s, alive: {self.alive()}\n{logs}")
            time.sleep(0.02)
        return found

    def pause(self, seconds: float) -> None:
        """Let time pass: for what must not happen."""
        time.sleep(seconds)

    def present(self) -> set[int]:
        """Peers that the coordinator has heard within the last seconds, and says are running."""
        now = time.time()
        peers = self.status().get("peers", ())
        return {p["peer"] for p in peers if p["state"] == "running" and now - (p["last_seen"] or 0) < 5}

    def steps(self, peer: int) -> int:
        """Steps of which `peer` has written metrics; gaps count."""
        return max((row["step"] + 1 for row in self._metrics(peer)), default=0)

    def worked(self, peer: int) -> int:
        """The last step of which `peer` has written that it gave a gradient; -1 if there is none."""
        return max((row["step"] for row in self._metrics(peer) if row["loss"] is not None), default=-1)

    def _metrics(self, peer: int) -> list[dict[str, Any]]:
        file = self.out / f"peer-{peer:02d}" / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def summaries(self) -> dict[int, dict[str, Any]]:
        """Peer -> how it ended, of those that came to the end."""
        files = self.out.glob("peer-*/summary.json")
        return {end["peer"]: end for end in (json.loads(file.read_text(encoding="utf-8")) for file in sorted(files))}

    def code(self, peer: int) -> int | None:
        """With what `peer`'s process ended."""
        code: int | None = self.processes[f"peer-{peer:02d}"].exitcode
        return code

    def left(self) -> list[str]:
        """Processes of this swarm that are there: its own, and what they have started."""
        mark = f"{SWARM}={self.out}".encode()
        found = self.alive()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:80])
            except OSError:
                continue
        return found

    def _launch(self, name: str, config: Config) -> None:
        if self.wire is not None:
            number = 0 if name == COORDINATOR else 1 + int(name.removeprefix("peer-"))
            config = replace(config, network=replace(config.network, host=self.wire.hosts[number]))
            (self.out / NAMESPACES).mkdir(exist_ok=True)
            (self.out / NAMESPACES / name).write_text(self.wire.paths[number], encoding="utf-8")
        super()._launch(name, config)


def settings(data: Path, **changes: Any) -> Config:
    """A swarm as small as it gets: five peers, one layer, short deadlines."""
    sections: dict[str, Any] = {
        "model": ModelConfig(layers=1, hidden=32, heads=2, intermediate=64, embedding=16),
        "batch": BatchConfig(total=16, per_device=4),
        "optimizer": OptimizerConfig(lr=0.01, warmup_steps=5, schedule_steps=1000),
        "protocol": Config().protocol,
        "attack": AttackConfig(),
        "deadlines": Deadlines(compute=20.0, phase=5.0, message=0.3, uplink=1, give_up=1.0, gather=60.0),
    }
    for name, section in sections.items():
        sections[name] = replace(section, **changes.pop(name, {}))
    whole = {"run_id": "faults", "peers": 5, "byzantine": 1, "steps": 12, "threads": 1, "checkpoint_every": 5}
    return Config(**(whole | sections | changes), data=DataConfig(path=str(data)))


def main(argv: Sequence[str]) -> int:
    """One process of the swarm."""
    out = Path(argv[argv.index("--out") + 1])
    os.environ[SWARM] = str(out.parent)
    namespace = out.parent / NAMESPACES / out.name
    if namespace.exists():
        enter(namespace.read_text(encoding="utf-8"))
    trainer.Trainer = FaultyTrainer  # type: ignore[misc]
    return commands.main(argv)
