"""A whole swarm on this machine.

A coordinator and `peers` trainers, a process each, and a bar that shows how they are. RUN_DIR gets a folder for each.
Every peer's key follows from the run's name and its number: for simulations and tests, not for strangers.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from btard.audit.files import STATUS
from btard.harness.pieces import RunFolderError, check_finished
from btard.harness.progress import Bar
from btard.harness.run_folder import read_summary
from btard.harness.settings import exit_with
from btard.harness.typed_yaml import ConfigError
from btard.swarm.config import SwarmConfig
from btard.swarm.forking import begin_forking
from btard.swarm.notes import ADDRESS

COORDINATOR = "coordinator"
START, SOON = 120.0, 0.05
"""Seconds in which the coordinator must have an address, and between two looks for it."""
LOOK, END = 0.5, 60.0
"""Seconds between two looks at the processes, and in which the last ones must end."""
EXIT_TERMINATED = 143


def peer_folder(number: int) -> str:
    """The folder of a trainer within the swarm's."""
    return f"peer-{number:02d}"


def log_file(out: Path, name: str) -> Path:
    """The file with the output of the process of this name."""
    return out / "logs" / f"{name}.txt"


class Swarm:
    """The processes of a swarm. They end with `close`, and with this process."""

    entry = "btard.swarm.commands"
    """The module whose `main` each process runs, with the words of its command line."""

    def __init__(self, config: SwarmConfig, out: Path, task: str) -> None:
        """`task`: module:function, which makes task and optimizer of the settings."""
        self.config, self.out, self.task = config, Path(out), task
        self._context = begin_forking(task)
        self.processes: dict[str, Any] = {}
        self.address = ""

    def start(self, timeout: float = START) -> Swarm:
        """Start the coordinator, and the trainers once it has an address. RuntimeError if it has none in time."""
        self.start_coordinator(timeout)
        for number in range(self.config.peers):
            self.start_trainer(number)
        return self

    def start_coordinator(self, timeout: float = START) -> None:
        file = self.out / COORDINATOR / ADDRESS
        file.unlink(missing_ok=True)
        network = replace(self.config.network, initial_peers=None)
        self._launch(COORDINATOR, replace(self.config, peer=0, network=network))
        deadline = time.monotonic() + timeout
        while not (file.exists() and file.read_text(encoding="utf-8").endswith("\n")):
            if not self.processes[COORDINATOR].is_alive() or time.monotonic() > deadline:
                said = [line for line in self.log(COORDINATOR).splitlines() if line.strip()] or ["nothing was printed"]
                last = next((line for line in reversed(said) if line.startswith("error: ")), said[-1])
                why = last.removeprefix("error: ")
                raise RuntimeError(f"the coordinator did not come up: {why} ({log_file(self.out, COORDINATOR)})")
            time.sleep(SOON)
        self.address = file.read_text(encoding="utf-8").strip()

    def start_trainer(self, number: int, **changes: Any) -> None:
        """Start trainer `number`, or start it again; `changes` to its settings make it differ from the others."""
        network = replace(self.config.network, initial_peers=self.address)
        config = replace(self.config, **{"peer": number, "network": network, "wandb": None, **changes})
        self._launch(peer_folder(number), config)

    def pid(self, number: int) -> int:
        """The process of trainer `number`."""
        return int(self.processes[peer_folder(number)].pid)

    def alive(self) -> list[str]:
        """The running processes, by folder."""
        return [name for name, process in self.processes.items() if process.is_alive()]

    def log(self, name: str) -> str:
        """What a process has printed so far."""
        file = log_file(self.out, name)
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def status(self) -> dict[str, Any]:
        """What the coordinator has written about the peers; empty before it has."""
        try:
            content = json.loads((self.out / COORDINATOR / STATUS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all processes have ended; False if some still run after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for process in list(self.processes.values()):
            process.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not self.alive()

    def close(self) -> None:
        """End all processes that still run."""
        for process in self.processes.values():
            if process.is_alive():
                process.terminate()
        deadline = time.monotonic() + 10
        for process in self.processes.values():
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self, name: str, config: SwarmConfig) -> None:
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        file = self.out / f"{name}.yaml"
        file.write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")
        command = COORDINATOR if name == COORDINATOR else "trainer"
        words = [command, str(file), "--task", self.task, "--out", str(folder)]
        log = log_file(self.out, name)
        log.parent.mkdir(exist_ok=True)
        process = self._context.Process(target=_child, args=(self.entry, words, str(log)), name=name)
        process.start()
        self.processes[name] = process


def _child(module: str, words: list[str], log: str) -> None:
    """The life of one process: its output goes to a file, and it ends when its starter does."""
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), name="parent", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_TERMINATED))
    with open(log, "a", buffering=1, encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        try:
            code = __import__(module, fromlist=["main"]).main(words)
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        stream.flush()
        os._exit(code)


def _end_with(parent: Any) -> None:
    """End this process when its parent ends, in whatever way: the server that forked it stays alive otherwise."""
    parent.join()
    os._exit(EXIT_TERMINATED)


def state_of(status: dict[str, Any], alive: Sequence[str]) -> str:
    """What is shown of a swarm next to its step: who runs, who is in the run, the loss, and who was removed and why."""
    peers = status.get("peers", ())
    if not peers:
        return "the peers begin"
    running = sum(peer_folder(peer["peer"]) in alive for peer in peers)
    parts = [f"{running} of {len(peers)} peers run", f"{sum(peer['active'] for peer in peers)} are in the run"]
    losses = [peer["loss"] for peer in peers if peer["active"] and peer.get("loss") is not None]
    parts += [f"loss {statistics.median(losses):.3f}"] if losses else []
    return ", ".join([*parts, *(f"peer {peer['peer']}: {peer['banned']}" for peer in peers if not peer["active"])])


LINES = 20
"""Lines about the progress of a whole run, for output that is no terminal with a bar."""


class Told:
    """The parts of the run that have had a line: the first step, then one step in every `LINES`-th part."""

    def __init__(self, steps: int) -> None:
        self.steps, self.every, self.next = steps, max(1, steps // LINES), 0

    def line(self, step: int, state: str) -> str | None:
        """Return the line that is due at `step`, None if none is."""
        if step < self.next:
            return None
        self.next = (step // self.every + 1) * self.every
        return f"step {step} of {self.steps}: {state}"


def main(config: SwarmConfig, out: Path, task: str) -> int:
    """Run the swarm of `task`, module:function.

    The exit code: 0 if the run came to its end, 1 if not, 2 after one line about a mistake, 130 if interrupted.
    """
    if config.peer is not None or config.network.founders is not None:
        exit_with(ConfigError("peer and network.founders are for single trainers: leave them out for a whole swarm"))
    with Swarm(config, out, task) as swarm:
        try:
            print(f"starting a coordinator and {config.peers} trainers; what they print: {out}/logs")
            swarm.start()
            with Bar(config.run_id, config.steps, show=sys.stderr.isatty()) as bar:
                told = Told(config.steps)
                while True:
                    alive = swarm.alive()
                    status = swarm.status()
                    bar.move(status.get("step", 0), state_of(status, alive))
                    if not sys.stderr.isatty() and (line := told.line(status.get("step", 0), bar.text)):
                        print(line, flush=True)
                    if COORDINATOR not in alive or len(alive) == 1:
                        break
                    time.sleep(LOOK)
            swarm.wait(END)
        except KeyboardInterrupt:
            print("interrupted: the same command goes on from the last checkpoints")
            return 130
        except RuntimeError as error:
            exit_with(error)
    return report(config, out)


def report(config: SwarmConfig, out: Path) -> int:
    """The table at the end; 0 if the coordinator saw the run's end."""
    try:
        seen, *ends = (_summary(folder) for folder in (out / COORDINATOR, *sorted(out.glob("peer-*/"))))
    except RunFolderError as error:
        exit_with(error)
    if seen is None:
        tails = {log.stem: log.read_text(errors="replace").strip()[-300:] for log in sorted(out.glob("logs/*.txt"))}
        for name, tail in tails.items():
            print(f"{name}: {tail or 'printed nothing'}")
        print("the run did not come to its end; the same command goes on from the last checkpoints")
        return 1
    from btard.swarm.coordinator import print_summary

    print_summary(seen, out / COORDINATOR)
    came = [end for end in ends if end is not None]
    equal = len({(end["digest"], end["ledger"]) for end in came}) == 1
    print(f"{len(came)} peers came to the end, {'with equal' if equal else 'with DIFFERENT'} parameters and ledgers")
    return 0


def _summary(folder: Path) -> dict[str, Any] | None:
    """The summary in a run folder, None if it has none. Errors: RunFolderError if it is not that of the other files."""
    summary = read_summary(folder)
    if summary is not None:
        check_finished(folder, summary, None)
    return summary
