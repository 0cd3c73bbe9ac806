"""One training run, attacked or not: model, optimizer and driver, step by step, into a run folder."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from btard.audit.vouching import FILES, digests
from btard.checkpoints import Checkpoints, under
from btard.drivers.collective import CollectiveDriver
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.drivers.server import ServerDriver
from btard.harness import tables
from btard.harness.device import pick_device
from btard.harness.progress import Bar
from btard.harness.run_folder import RunFolder, RunFolderError, read_timings, steps_per_second
from btard.harness.settings import config_text
from btard.harness.typed_yaml import ConfigError
from btard.protocol.commit import NoGradient
from btard.protocol.heal import HEALED, described
from btard.protocol.ledger import Entry, Ledger
from btard.protocol.tolerance import tolerated_deviation
from btard.training.garbage import only_new_garbage
from btard.training.kernels import check_bits, choose_exact_kernels
from btard.training.layout import layout_digest, write_layout
from btard.training.optimizer import VectorOptimizer
from resnet.cohort import HISTORY, make_driver, make_model, make_task
from resnet.config import Config
from resnet.data import DataError, Dataset, load_dataset
from resnet.model import evaluate, values_left
from resnet.optimizer import cosine, sgd

EVALUATOR = 0
"""The peer whose BatchNorm statistics the model is evaluated with; it is never Byzantine."""


class Training:
    """A run between two steps: model, optimizer and driver. `config` and its seed determine all of it."""

    def __init__(self, config: Config, data: Dataset, folder: Path) -> None:
        self.config, self.data = config, data
        check_batch(config, data)
        self.device = self._device()
        exact = config.btard and config.protocol.validation == "exact"
        if exact:
            choose_exact_kernels(self.device)
        self.model = make_model(config, data).to(self.device)
        self.task = make_task(config, data, self.model)
        self.optimizer = VectorOptimizer(self.model, sgd(config.optimizer), cosine(config.schedule_steps))
        if exact and self.device.type != "cpu":
            self._check_bits()
        self.byzantine = config.attackers()
        self.driver = self._driver(folder)
        self.test = data.test_tensors(self.device, config.test_samples)
        self.whole_test = data.test_tensors(self.device)
        self.diverged_at: int | None = None
        self.seconds: dict[str, float] = {}
        """Phase -> seconds of the latest step; empty if nothing was computed."""

    def step(self, step: int) -> tuple[StepResult | None, dict[str, Any]]:
        """One step of all peers and of the optimizer; metrics of it. None once the training has diverged.

        Parameters at which the gradient is NaN stay as they are: further steps would change nothing.
        """
        optimizer, task = self.optimizer, self.task
        metrics: dict[str, Any] = {"step": step, "lr": optimizer.lr(step)}
        result, started = None, time.perf_counter()
        self.seconds = {}
        if self.diverged_at is None:
            try:
                result = self.driver.step(optimizer.params, optimizer.state(), task.local_state())
            except NoGradient:
                self.diverged_at = step
        if result is not None:
            result.move(optimizer, task, step)
            if result.back_to is not None:
                metrics["back_to"] = result.back_to
            spent = time.perf_counter() - started
            self.seconds = {**result.seconds, "other": max(0.0, spent - sum(result.seconds.values()))}
            # Until an attack starts nobody is anything but honest.
            attackers = self.byzantine if step >= self.config.attack.start else ()
            honest = [peer for peer in result.workers if peer not in attackers]
            metrics |= {
                "loss": _finite(self._mean_loss(honest)),
                "active": len(result.active),
            }
            if result.account is not None:
                # Bytes of one peer, the same one where each is a process: equal runs leave equal lines.
                honest = [peer for peer in result.sent if peer in result.active and peer not in self.byzantine]
                metrics |= result.account.fields(min(honest, default=None))
            if self.config.btard and self.config.protocol.tau == "auto":
                metrics["tau"] = result.tau
        last = step + 1 == self.config.steps
        if self.evaluator is not None and ((step + 1) % self.config.eval_every == 0 or last):
            accuracy, loss = self.evaluate(*(self.whole_test if last else self.test))
            metrics |= {"test_accuracy": accuracy, "test_loss": _finite(loss)}
        return result, metrics

    def evaluate(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        """Accuracy in [0, 1] and loss on a test set, with the evaluating peer's own BatchNorm statistics."""
        self.task.write_buffers(EVALUATOR if self.evaluator is None else self.evaluator)
        return evaluate(self.model, images, labels)

    def _check_bits(self) -> None:
        """Raise ConfigError if peers on this device could not compare bits."""
        advice = (
            "set protocol.validation to tolerant (python -m resnet.calibrate finds its tolerances), or device to cpu"
        )
        try:
            check_bits(self.task, self.optimizer.params, together=self.config.mode == "per_peer", advice=advice)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError) as error:  # torch's own names an operation without a deterministic kernel
            raise ConfigError(f"protocol.validation exact: {error}") from None

    # What differs where each peer is a process.

    @property
    def evaluator(self) -> int | None:
        """The peer with whose BatchNorm statistics this process measures accuracy; None if it does not."""
        return EVALUATOR

    def _device(self) -> torch.device:
        return pick_device(self.config.device)

    def _driver(self, folder: Path) -> LocalDriver | ServerDriver | CollectiveDriver:
        return make_driver(self.config, self.task, self.byzantine, folder)

    def _losses(self) -> Mapping[int, float]:
        """Peer -> its latest training loss."""
        return self.task.losses

    def _mean_loss(self, peers: Sequence[int]) -> float:
        """In float32, as the losses are."""
        losses = self._losses()
        return torch.tensor([losses[peer] for peer in peers if peer in losses], device=self.device).mean().item()

    def save(self, place: RunFolder | Checkpoints, step: int, folder: RunFolder | None) -> None:
        """Write a checkpoint from which `load` continues to the same bits with step `step`, with pieces of `folder`."""
        state, tensors = self.driver.state()
        tensors = {f"driver/{name}": tensor for name, tensor in tensors.items()}
        tensors |= {**self.optimizer.state(), **self.task.local_state()}
        tensors |= {} if folder is None else folder.vouch(step)
        place.save_checkpoint(step, tensors, {"driver": state, "diverged_at": self.diverged_at})

    def load(self, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        tensors = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        missing = {*self.optimizer.state(), *self.task.local_state()} - set(tensors)
        if missing:
            raise RunFolderError(
                f"the checkpoint has no tensor {min(missing)!r}: another release wrote it; finish the run with it, "
                "or begin in another folder"
            )
        self.optimizer.load(tensors)
        self.task.load_local_state(tensors)
        # The same life: an interrupted run leaves the bytes of one that was not, and its attackers remember nothing.
        self.driver.restore(state["driver"], under("driver/", tensors), life=None)
        self.diverged_at = state["diverged_at"]


def _state(metrics: dict[str, Any]) -> str | None:
    """The text of a progress bar after a step; None to keep the text."""
    if "test_accuracy" not in metrics:
        return None
    now = f"{metrics['active']} peers" if "active" in metrics else "diverged"
    return f"accuracy {metrics['test_accuracy']:.1%}, {now}"


def _finite(value: float) -> float | None:
    """JSON has no NaN: a value that is no longer a number becomes null."""
    return value if math.isfinite(value) else None


def train(
    config: Config,
    out: Path,
    *,
    progress: bool = True,
    until: int | None = None,
    events: bool = True,
    on_step: Callable[[int], None] | None = None,
    data: Dataset | None = None,
) -> dict[str, Any] | None:
    """Run or resume the training in folder `out`; returns its summary. A finished run is returned as it is.

    `until`: stop before this step, with a checkpoint and without a summary (None is returned); `events`: write for
    TensorBoard; `on_step` hears how many steps are done; `data` spares reading the data set that the config names.
    Errors: DataError for missing or broken data, RunFolderError for a folder of another run, ConfigError for settings
    that cannot work together.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    folder = RunFolder(out, config, events=events)
    finished = folder.summary()
    if finished is not None:
        return finished
    last = config.steps if until is None else min(until, config.steps)
    if data is None:
        data = load_dataset(config.data.name, config.data.path, label=config.data.label)
    config = knowing(config, data)
    folder.settle(config)
    training = Training(config, data, out)
    write_layout(out, training.task.layout(), training.task.agreed())
    first = 0
    checkpoint = folder.load_checkpoint()
    if checkpoint is not None:
        first, tensors, state = checkpoint
        training.load(tensors, state)
    folder.start(first)
    folder.note("settings", first, f"```\n{config_text(config)}```")
    ledger = Ledger.of(folder.ledger())
    with only_new_garbage(), Bar(out.name, last, done=first, show=progress) as bar:
        for step in range(first, last):
            result, metrics = training.step(step)
            folder.log(step, metrics, training.seconds)
            for entry in result.removed if result is not None else ():
                folder.log_ledger([ledger.append(entry)])
                folder.note("healings" if entry.kind == HEALED else "bans", step, describe(entry, training.byzantine))
                if progress:
                    bar.say(describe(entry, training.byzantine))
            if on_step is not None:
                on_step(step + 1)
            if (step + 1) % config.checkpoint_every == 0 and step + 1 < last:
                training.save(folder, step + 1, folder)
            bar.advance(text=_state(metrics))
    if first < last:
        training.save(folder, last, folder)
    if last < config.steps:
        folder.close()
        return None
    if isinstance(training.driver, LocalDriver):
        training.driver.attest(training.optimizer.params, layout_digest(training.task.layout()))
    summary = summarise(config, training, folder)
    folder.write_summary(summary)
    shutil.rmtree(out / HISTORY, ignore_errors=True)
    return summary


def check_batch(config: Config, data: Dataset) -> None:
    """Raise ConfigError if the data has no such batch, or it leaves BatchNorm one value per channel: that needs two."""
    count = len(data.train_labels)
    if config.batch_size > count:
        raise ConfigError(
            f"batch_size must be at most {count}, the training images of {data.label}, got {config.batch_size}; lower "
            "it, or add images"
        )
    height, width = data.train_images.shape[2:]
    if config.batch_size * values_left(height, width) < 2:
        raise ConfigError(
            f"batch_size must be at least 2 for images of {width} x {height}, got {config.batch_size}: BatchNorm needs "
            "two values per channel"
        )


def knowing(config: Config, data: Dataset) -> Config:
    """Return the settings with the digest of the data in them. Raises DataError if they ask for other data."""
    if config.data.digest not in (None, data.digest):
        raise DataError(
            f"data.digest: expected data with the digest {config.data.digest}, got {data.digest}; restore them, "
            "correct data.path, or leave data.digest out"
        )
    return replace(config, data=replace(config.data, digest=data.digest))


def describe(entry: Entry, byzantine: frozenset[int]) -> str:
    """One line for people about a ledger entry."""
    if entry.kind == HEALED:
        return described(entry)
    who = ", ".join(f"{peer} ({'Byzantine' if peer in byzantine else 'honest'})" for peer in entry.peers)
    by = f", accused by {', '.join(map(str, entry.accusers))}" if entry.accusers else ""
    return f"step {entry.step}: banned peer {who}: {entry.kind}{by}"


def summarise(config: Config, training: Training, folder: RunFolder) -> dict[str, Any]:
    """The outcome of a finished run, from its own files."""
    folder.flush()
    metrics = folder.metrics()
    entries = [Entry.from_json(line) for line in folder.ledger()]
    bans = [
        {
            "peer": peer,
            "step": entry.step,
            "kind": entry.kind,
            "accuser": entry.accusers[0] if entry.accusers and peer not in entry.accusers else None,
            "byzantine": peer in training.byzantine,
        }
        for entry in entries
        for peer in entry.peers
    ]
    return {
        "test_accuracy": metrics[-1]["test_accuracy"],
        "best_test_accuracy": max(line["test_accuracy"] for line in metrics if "test_accuracy" in line),
        "steps": config.steps,
        "honest_banned": sum(not ban["byzantine"] for ban in bans),
        "byzantine_banned": sum(ban["byzantine"] for ban in bans),
        "byzantine": sorted(training.byzantine),
        "bans": bans,
        "diverged_at": training.diverged_at,
        FILES: digests(folder.path),
        "data": training.data.label,
        "parameters": training.task.d,
        "mode": config.mode,
        "device": str(training.device),
        "validation": validation_of(config),
        "commitments": config.commitments if config.btard else None,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
    }


def validation_of(config: Config) -> dict[str, Any] | None:
    """How validators compare, and how far off a peer can be unnoticed, relative to its gradient; None without them."""
    protocol = config.protocol
    if not config.validators:
        return None
    if protocol.validation == "exact":
        return {"mode": "exact"}
    return {
        "mode": "tolerant",
        "gradient_tol": protocol.gradient_tol,
        "cosine_tol": protocol.cosine_tol,
        "tolerated_deviation": tolerated_deviation(protocol.gradient_tol),
    }


def print_summary(summary: dict[str, Any], out: Path) -> None:
    row = (
        summary["data"],
        f"{summary['test_accuracy']:.2%}",
        f"{speed:.2f}" if (speed := steps_per_second(out)) else "-",
        f"{summary['byzantine_banned']} of {len(summary['byzantine'])}",
        str(summary["honest_banned"]),
    )
    tables.show(str(out), ("data", ">test accuracy", ">steps/s", ">Byzantine banned", ">honest banned"), [row])
    phases: Counter[str] = Counter()
    for line in read_timings(out):
        phases.update({phase: spent for phase, spent in line.items() if phase != "step"})
    if total := sum(phases.values()):
        shares = ", ".join(f"{phase} {spent / total:.0%}" for phase, spent in phases.most_common(6))
        print(f"time by phase: {shares}")
    print(f"curves: tensorboard --logdir {out}   files: {out}/summary.json, metrics.jsonl, ledger.jsonl")
