"""`torchrun --nproc-per-node PEERS -m resnet.train ...`: the same training run with one process per peer.

Each rank keeps its own checkpoints, and a step counts once all have it. The lowest honest rank that is still in the run
writes metrics and ledger and measures accuracy.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import struct
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from btard.audit.recorder import Recorder
from btard.checkpoints import Saved, checkpoints_of
from btard.drivers.collective import CollectiveDriver, Fallen
from btard.drivers.mesh import Mesh, RankLost, torchrun_mesh
from btard.harness.pieces import Pieces, separate
from btard.harness.progress import Bar
from btard.harness.run_folder import RunFolder, RunFolderError
from btard.harness.typed_yaml import ConfigError
from btard.protocol.behaviour import HookError
from btard.protocol.ledger import Ledger
from btard.training.layout import layout_digest, write_layout
from resnet.cohort import HISTORY, cohort_settings
from resnet.config import Config, load_config
from resnet.data import DataError, Dataset, load_dataset
from resnet.training import Training, describe, knowing, print_summary, summarise

FIRST = 0
"""The rank that handles the folder and the data at the start, and reports mistakes for all."""


class RankTraining(Training):
    """The part of a run that rank `mesh.rank` does."""

    driver: CollectiveDriver

    def __init__(self, config: Config, data: Dataset, folder: Path, mesh: Mesh) -> None:
        self.mesh = mesh
        super().__init__(config, data, folder)

    @property
    def evaluator(self) -> int | None:
        """This rank, if it is the lowest honest one that is still in the run."""
        return self.mesh.rank if self.driver.leads else None

    def _device(self) -> torch.device:
        device = super()._device()
        if device.type != "cuda":
            return device
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())

    def _driver(self, folder: Path) -> CollectiveDriver:
        protocol = self.config.protocol_config()
        return CollectiveDriver(
            protocol,
            self.task,
            self.mesh,
            recorder=None if self.mesh.rank in self.byzantine else Recorder(folder, protocol, "resnet.audit:task_of"),
            note=lambda: struct.pack("<f", self.task.losses.get(self.mesh.rank, 0.0)),
            **cohort_settings(self.config, self.task, self.byzantine, folder / HISTORY / f"rank-{self.mesh.rank:03d}"),
        )

    def _losses(self) -> dict[int, float]:
        return {rank: struct.unpack("<f", note)[0] for rank, note in self.driver.notes.items()}


def main(argv: list[str] | None = None) -> int:
    """This rank's exit code; 0 for a finished run, and for a peer that fell out of it."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    shown = contextlib.nullcontext() if rank == FIRST else contextlib.redirect_stderr(io.StringIO())
    with shown:  # one line about a mistake, not one from each rank
        warnings.showwarning = lambda message, *_args, **_kw: _say(f"warning: {message}")
        config, out = load_config(argv)
        if not config.btard:
            return _mistake(f"aggregator.name {config.aggregator.name}: torchrun is for btard, start without it")
        if config.commitments != "hashed":
            return _mistake("commitments ideal: processes have no memory in common, use hashed")
        if size != config.peers:
            return _mistake(f"peers = {config.peers}, but torchrun started {size} processes: make them equal")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    progress = _Progress()
    try:
        mesh = torchrun_mesh(config.timeout)
        return _run(replace(config, mode="per_peer"), out, mesh, progress)
    except RankLost as lost:
        there = [other for other in range(size) if other not in lost.missing and other not in progress.fallen]
        if rank == min(there, default=rank):
            _say(f"error: {lost}; restart with the same command to go on from step {progress.safe}")
        return _leave(1)
    except KeyboardInterrupt:
        if rank == FIRST:
            _say("interrupted: the same command goes on from the last checkpoint")
        return _leave(130)


class _Progress:
    """What a rank knows when the run breaks off: the step to continue from, and which ranks had left before."""

    def __init__(self) -> None:
        self.safe = self.saved = 0
        self.fallen: set[int] = set()

    def advanced(self, ranks: tuple[int, ...], size: int) -> None:
        """All ranks have done another step, so all have written their last checkpoints."""
        self.safe = self.saved
        self.fallen = set(range(size)) - set(ranks)


def _run(config: Config, out: Path, mesh: Mesh, progress: _Progress) -> int:
    folder: RunFolder | None = None
    problem, finished, data = "", None, None
    if mesh.rank == FIRST:  # before all others, as it may make the folder and download the data
        try:
            folder = RunFolder(out, config, processes=True)
            finished = folder.summary()
            if finished is None:
                data = load_dataset(config.data.name, config.data.path, label=config.data.label)
                folder.settle(knowing(config, data))
        except (ConfigError, DataError, RunFolderError) as error:
            problem = " ".join(str(error).split())
    problem, done = json.loads(mesh.gather("start", json.dumps([problem, finished is not None]).encode())[FIRST])
    if problem:
        return _mistake(problem) if mesh.rank == FIRST else 2
    if done:
        if finished is not None:
            print_summary(finished, out)
        return 0
    if data is None:
        data = load_dataset(config.data.name, config.data.path, label=config.data.label)
    config = knowing(config, data)
    training = RankTraining(config, data, out, mesh)
    if mesh.rank == FIRST:
        write_layout(out, training.task.layout(), training.task.agreed())
    checkpoints = checkpoints_of(out, mesh.rank)
    found = {saved.step: saved for saved in checkpoints.intact()}
    first, ranks = _common(mesh, found)
    progress.safe = progress.saved = first
    if mesh.rank not in ranks:
        _say(f"rank {mesh.rank}: peer {mesh.rank} had left the run before step {first}; the others continue")
        return 0
    held: Pieces = {}
    try:
        if first:
            tensors, held = separate(found[first].tensors)
            training.load(tensors, found[first].state)
    except RunFolderError as error:
        return _mistake(str(error)) if mesh.rank == min(ranks) else 2
    progress.advanced(mesh.ranks, config.peers)
    checkpoints.forget_after(first)
    try:
        with Bar(out.name, config.steps, done=first, show=mesh.rank == FIRST) as bar:
            return _steps(training, out, first, progress, folder, bar, held)
    except Fallen as fallen:
        _say(f"{fallen}; rank {mesh.rank} ends; the others continue")
        return 0
    except (RunFolderError, HookError) as error:
        return _mistake(str(error))


def _steps(
    training: RankTraining,
    out: Path,
    first: int,
    progress: _Progress,
    folder: RunFolder | None,
    bar: Bar,
    held: Pieces,
) -> int:
    """Train from step `first` to the end; 0. `folder` is that of the first rank, others open it when they take it over.

    `held`: what this rank's checkpoint of step `first` has of the folder; nothing if it was not its own then.
    """
    config, mesh = training.config, training.mesh
    checkpoints = checkpoints_of(out, mesh.rank)
    ledger: Ledger | None = None
    try:
        if first == config.steps and training.evaluator is not None:  # all that is missing is the summary
            folder = folder or RunFolder(out, config, processes=True)
            folder.rely_on(first, held)
            folder.start(first)
        for step in range(first, config.steps):
            result, metrics = training.step(step)
            progress.advanced(mesh.ranks, config.peers)
            if training.evaluator is not None:
                folder = folder or RunFolder(out, config, processes=True)
                if ledger is None:
                    if step == first:
                        folder.rely_on(step, held)
                    folder.start(step)
                    ledger = Ledger.of(folder.ledger())
                folder.log(step, metrics, training.seconds)
                for entry in result.removed if result is not None else ():
                    folder.log_ledger([ledger.append(entry)])
                    bar.say(describe(entry, training.byzantine))
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                training.save(checkpoints, step + 1, folder if training.evaluator is not None else None)
                progress.saved = step + 1
            bar.advance()
        training.driver.attest(training.optimizer.params, layout_digest(training.task.layout()))
        progress.advanced(mesh.ranks, config.peers)
    finally:
        if folder is not None:
            folder.close()  # for the next rank, if this one has fallen
    if folder is not None and training.evaluator is not None:
        summary = {**summarise(config, training, folder), "processes": config.peers}
        folder.write_summary(summary)
        shutil.rmtree(out / HISTORY, ignore_errors=True)
        print_summary(summary, out)
    return 0


def _common(mesh: Mesh, found: Mapping[int, Saved]) -> tuple[int, tuple[int, ...]]:
    """The newest step of which every rank that was then in the run has a checkpoint, and these ranks; 0 if none."""
    mine = [[step, saved.state["driver"]["ranks"]] for step, saved in found.items()]
    said = mesh.gather("resume", json.dumps(mine).encode())
    members = {rank: {step: tuple(ranks) for step, ranks in json.loads(text)} for rank, text in said.items()}
    for step in sorted({step for known in members.values() for step in known}, reverse=True):
        for ranks in {known[step] for known in members.values() if step in known}:
            if all(members[rank].get(step) == ranks for rank in ranks):
                return step, ranks
    return 0, mesh.ranks


def _say(line: str) -> None:
    # One write: lines of several ranks do not get mixed up.
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _mistake(line: str) -> int:
    _say(f"error: {line}")
    return 2


def _leave(code: int) -> int:
    """End at once: background work that waits for a lost rank would keep the process alive."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
