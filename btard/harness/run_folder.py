"""A run is a folder: settings, a line of metrics per step, the ledger, TensorBoard events, checkpoints, a summary.

What a clock measured has a file of its own, timings.jsonl: of the others equal runs leave equal ones.

What a run needs to go on is in the newest checkpoint; everything else in the folder is cut back to it on resuming, so
that an interrupted run and an uninterrupted one leave the same files. Lines that the folder has lost are put back from
the checkpoint (`btard.harness.pieces`).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from torch import Tensor

from btard.audit.files import CHECKPOINTS, CONFIG, LEDGER, METRICS, SUMMARY, TIMINGS, VERSION, read_bounded
from btard.checkpoints import checkpoints_of
from btard.extras import need
from btard.files import complete_file, lock, unfinished, write_file
from btard.harness import pieces
from btard.harness.pieces import AGAIN, WHOLE, Pieces, RunFolderError, lines_before, lines_of
from btard.harness.settings import Settings, config_text, differing_keys, found_by, read_config
from btard.harness.typed_yaml import AnyPath, ConfigError
from btard.protocol.hashing import PROTOCOL_VERSION

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

HANDOVER = 10.0
"""Seconds that a process waits for the one before it to leave the folder."""

BYTES = "bytes"

TAGS = {
    "test_accuracy": "accuracy/test",
    "loss": "loss/train, mean of honest peers",
    "test_loss": "loss/test",
    "active": "peers/active",
    "tau": "protocol/tau",
    "back_to": "protocol/went back to step",
    "lr": "optimizer/learning rate",
}
"""The names of a step's metrics in TensorBoard."""

MAX_SUMMARY = 2**24
"""Bytes: it has a line for each file of the folder's evidence."""

SECONDS_TAG = "time/seconds per step"


class RunFolder:
    """The folder of one run, created if it does not exist.

    Order of calls: `summary` (is it finished?), `load_checkpoint`, `start`, then `log`, `log_ledger` and
    `save_checkpoint` as training goes on, and `write_summary` at the end.

    With `processes` the run has a process for each peer: each keeps its own checkpoints, and one of them has the
    folder, which another takes over where that one leaves the run. Without `events` nothing goes to TensorBoard.
    `again`: what to do if a file of the finished run is not the one that its summary was made of.

    Raises RunFolderError if `path` holds something else, or a run with other settings.
    """

    def __init__(
        self, path: Path, config: Settings, *, processes: bool = False, events: bool = True, again: str = AGAIN
    ) -> None:
        self.path, self._again = Path(path), again
        self.first = 0
        """The step of the run that is step 0 of ledger, proofs and checkpoints: where a swarm began."""
        self._wants_events = events
        self.checkpoints = checkpoints_of(self.path)
        self._processes = processes
        self._lock_file: IO[bytes] | None = None
        self._metrics: TextIOWrapper | None = None
        self._ledger: TextIOWrapper | None = None
        self._timings: TextIOWrapper | None = None
        self._events: SummaryWriter | None = None
        self._vouched: tuple[int, Pieces] | None = None
        """The step of the checkpoint from which the run continues, and what that checkpoint holds of the folder."""
        self._claim(config)

    def _claim(self, config: Settings) -> None:
        file = self.path / CONFIG
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            others = [entry.name for entry in self.path.iterdir()]
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot be used as a run folder: {error.strerror}") from None
        if not file.exists():
            if self.has_checkpoints():
                raise RunFolderError(
                    f"{self.path}: holds checkpoints, but no config.yaml that says of which run; copy it again as a "
                    "whole, or delete it"
                )
            if strange := set(others) - {CHECKPOINTS, unfinished(file).name}:  # these a full disk may leave
                raise RunFolderError(
                    f"{self.path}: holds other files ({min(strange)}) and no run; choose another --out"
                )
        elif self.begun():
            self._refuse_other(config, file)
            return
        # Also where an earlier attempt failed before its first step: its settings bind nobody.
        self.checkpoints.path.mkdir(exist_ok=True)
        write_file(file, config_text(config))
        write_file(self.path / VERSION, f"{PROTOCOL_VERSION}\n")

    def settle(self, config: Settings) -> None:
        """Record what the run has found out about its settings: values `found` for keys that were null.

        Raises RunFolderError if the run was begun with something else.
        """
        self._claim(config)

    def begun(self) -> bool:
        """Whether the folder has anything from a step."""
        metrics = self.path / METRICS
        return self.has_checkpoints() or (metrics.exists() and metrics.stat().st_size > 0)

    def has_checkpoints(self) -> bool:
        """Whether the run has reached a first checkpoint."""
        return bool(self.checkpoints.files()) or any(self.checkpoints.path.glob("rank-*/step-*.safetensors"))

    def _refuse_other(self, config: Settings, file: Path) -> None:
        way_out = "choose another --out, or delete the folder"
        noted = self.path / VERSION
        version = noted.read_text(encoding="utf-8", errors="replace").strip() if noted.is_file() else "none"
        if version != str(PROTOCOL_VERSION):
            raise RunFolderError(
                f"{self.path}: holds a run of protocol version {version:.40}, this is version {PROTOCOL_VERSION}; "
                f"{way_out}"
            )
        try:
            differing = differing_keys(read_config(type(config), file), config)
        except ConfigError as error:
            raise RunFolderError(f"{error}; the run in this folder cannot be continued: {way_out}") from None
        if differing:
            key, theirs, ours = differing[0]
            if key in found_by(config):
                raise RunFolderError(
                    f"{self.path}: holds a run with {key} {theirs}, which is {ours} now: what it reads has changed; "
                    f"restore that, or {way_out}"
                )
            others = ", ".join(name for name, _, _ in differing[1:])
            more = f" (also different: {others})" if others else ""
            was, this = ("null" if value is None else value for value in (theirs, ours))
            raise RunFolderError(f"{self.path}: holds a run with {key} {was}, not {this}{more}; {way_out}")
        if self.has_checkpoints() and self._processes == bool(self.checkpoints.files()):
            how = (
                "in one process, not under torchrun"
                if self._processes
                else "with a process for each peer: use torchrun"
            )
            raise RunFolderError(f"{self.path}: holds a run that was begun {how}; {way_out}")

    def summary(self) -> dict[str, Any] | None:
        """Return what a finished run wrote, None if it is not finished.

        Raises RunFolderError if that is damaged, or was made of other files than there are.
        """
        summary = read_summary(self.path)
        if summary is not None:
            pieces.check_finished(self.path, summary, None, self._again)
        return summary

    def metrics(self) -> list[dict[str, Any]]:
        """Return the metrics of every step so far, as they were logged."""
        return read_metrics(self.path)

    def done(self) -> int:
        """Return the step after the last one that was logged, 0 if there is none."""
        return max((line["step"] + 1 for line in self.metrics()), default=0)

    def ledger(self) -> list[str]:
        """Return the ledger's entries so far, as the JSON strings that were logged."""
        return [line.decode() for _, line in lines_of(self.path / LEDGER)]

    def start(self, step: int, *, forget: bool = True) -> None:
        """Open the files for writing from step `step` on, and remove what they hold of it and of later steps.

        `forget`: also later checkpoints. Where others have a say in `step` these stay until the run has come past them.
        Lines of before that are missing are put back, if the run goes on from a checkpoint that holds them. Raises
        RunFolderError if the folder has other lines than that, or if another process writes to this folder; one that
        leaves it is given some time.
        """
        self.close()
        self._lock()
        if self._vouched is not None and self._vouched[0] == step:
            for line in self.put_back(*self._vouched):
                warnings.warn(line, stacklevel=2)
            pieces.forget_states(self.path, self._vouched[1])
        elif forget and step == self.first:
            pieces.forget_states(self.path, {})
        done = step if forget else self.done()
        kept = _cut(self.path / METRICS, step)
        _cut(self.path / LEDGER, step - self.first)
        _cut(self.path / TIMINGS, step)
        if kept != step:
            warnings.warn(f"{self.path}/metrics.jsonl has {kept} of the {step} steps before this one", stacklevel=2)
        self.checkpoints.forget_after(done - self.first, math.inf if forget else step - self.first)
        self._metrics = (self.path / METRICS).open("a", encoding="utf-8", buffering=1)
        self._ledger = (self.path / LEDGER).open("a", encoding="utf-8", buffering=1)
        self._timings = (self.path / TIMINGS).open("a", encoding="utf-8", buffering=1)
        if self._wants_events:
            need("experiments", "tensorboard")
            from torch.utils.tensorboard import SummaryWriter  # takes seconds, so only a program that writes imports it

            self._events = SummaryWriter(str(self.path / "tb"), purge_step=step or None)

    def adopt(self, other: Path, checkpoint: Path, step: int) -> None:
        """Begin in the state of the run in folder `other` at `step`: its lines until then, and its `checkpoint`.

        The checkpoint comes last: whatever interrupts this leaves a run that has not begun, and can be done again.
        """
        for name in (METRICS, LEDGER, TIMINGS):
            write_file(self.path / name, b"".join(line + b"\n" for line in lines_before(other / name, step)))
        target = self.checkpoints.path / checkpoint.name
        with complete_file(target) as temporary:
            shutil.copyfile(checkpoint, temporary)

    def log(self, step: int, metrics: Mapping[str, Any], seconds: Mapping[str, float] | None = None) -> None:
        """Append the metrics of `step` to metrics.jsonl (NaN and infinity as null), and its numbers to TensorBoard.

        `seconds`: phase of the step -> how long it took, for timings.jsonl. There go the bytes by phase, too: until an
        attack starts equal runs send different ones, as they provide for other numbers of attackers.
        """
        if self._metrics is None or self._timings is None:
            raise RuntimeError("call start() before log()")
        line = {"step": step, **metrics}
        sent = {BYTES: line.pop(BYTES)} if seconds and isinstance(line.get(BYTES), Mapping) else {}
        if self._events is not None:
            for name, value in line.items():
                if name in TAGS and isinstance(value, int | float):
                    self._events.add_scalar(TAGS[name], value, step)
            if seconds:
                self._events.add_scalar(SECONDS_TAG, sum(seconds.values()), step)
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._metrics.write(json.dumps(finite) + "\n")
        if seconds:
            rounded = {phase: round(spent, 5) for phase, spent in seconds.items()}
            self._timings.write(json.dumps({"step": step, **rounded, **sent}) + "\n")

    def note(self, what: str, step: int, line: str) -> None:
        """Show in TensorBoard, under the tag `what`, a line about `step`."""
        if self._events is not None:
            self._events.add_text(what, line, step)

    def log_ledger(self, entries: Sequence[str]) -> None:
        """Append ledger entries: JSON objects with a `step`, one line each."""
        if self._ledger is None:
            raise RuntimeError("call start() before log_ledger()")
        self._ledger.writelines(entry + "\n" for entry in entries)

    def replace_ledger(self, entries: Sequence[str]) -> None:
        """Replace the entries of the ledger by these: a peer that was away learns what it missed."""
        if self._ledger is None:
            raise RuntimeError("call start() before replace_ledger()")
        self._ledger.close()
        write_file(self.path / LEDGER, "".join(entry + "\n" for entry in entries))
        self._ledger = (self.path / LEDGER).open("a", encoding="utf-8", buffering=1)

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Write what a run that has done `step` steps needs to continue; `state` is JSON. Keeps this one and the last.

        The file appears complete or not at all, and only after the lines logged so far are on the disk.
        """
        self.flush()
        self.checkpoints.save_checkpoint(step, tensors, state)

    def flush(self) -> None:
        """Force the lines logged so far onto the disk."""
        for file in (self._metrics, self._ledger, self._timings):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())
        if self._events is not None:
            self._events.flush()

    def vouch(self, step: int, *, timings: bool = False) -> dict[str, Tensor]:
        """Return what a checkpoint of `step` should hold of this folder, by name, to be restored if it is lost.

        `timings`: of these, too. Checkpoints of equal runs then differ.
        """
        self.flush()
        return pieces.collect(self.path, step, first=self.first, timings=timings)

    def put_back(self, step: int, held: Pieces, *, grows: bool = False) -> list[str]:
        """Restore lines that the folder lacks and the checkpoint of `step` holds; returns a line about each file.

        `grows`: as in `pieces.mend`. Raises RunFolderError if the folder has other lines than those.
        """
        wrong, said = pieces.mend(self.path, step, held, first=self.first, grows=grows)
        for name, content in wrong.items():
            write_file(self.path / name, content)
        return said

    def rely_on(self, step: int, held: Pieces) -> None:
        """Let `start(step)` restore what is missing of the `held` pieces of a checkpoint.

        Raises RunFolderError if proofs are missing, which cannot be put back.
        """
        if (problem := pieces.missing_proof(self.path, held)) is not None:
            raise RunFolderError(f"{problem}; {WHOLE}")
        self._vouched = step, held

    def load_checkpoint(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Return (steps done, tensors, state) of the newest checkpoint, None if there is none.

        One that is damaged, or was written when the folder had proofs that are missing now, is passed over with a
        warning. Raises RunFolderError if there are no others.
        """
        problem = ""
        for step, all_tensors, state in self.checkpoints.intact():
            tensors, held = pieces.separate(all_tensors)
            try:
                self.rely_on(step, held)
            except RunFolderError as error:
                problem = problem or str(error)
                continue
            if problem:
                warnings.warn(f"{problem}: going on from the checkpoint of step {step}", stacklevel=2)
            return step, tensors, state
        if problem:
            raise RunFolderError(problem)
        if self.checkpoints.files():
            raise RunFolderError(
                f"{self.checkpoints.path}: every checkpoint is damaged; delete them to start from step 0"
            )
        return None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, which marks the run as finished, and close the files."""
        self.close()
        write_file(self.path / SUMMARY, json.dumps(summary, indent=2) + "\n")

    def close(self) -> None:
        """Close the files, and leave the folder to others. `start` opens them again."""
        for file in (self._metrics, self._ledger, self._timings, self._events, self._lock_file):
            if file is not None:
                file.close()
        self._metrics = self._ledger = self._timings = self._events = self._lock_file = None

    def _lock(self) -> None:
        self._lock_file = lock(self.path / ".lock", HANDOVER if self._processes else 0)
        if self._lock_file is None:
            raise RunFolderError(f"{self.path}: another process is training in this folder; wait for it")


def read_metrics(path: AnyPath) -> list[dict[str, Any]]:
    """Return the lines of a run folder's metrics.jsonl; one that was cut short by a crash ends them."""
    return [value for value, _ in lines_of(path / METRICS)]


def read_timings(path: AnyPath) -> list[dict[str, Any]]:
    """Return the lines of a run folder's timings.jsonl: `step`, and phase -> seconds. Empty if nobody kept them."""
    return [{name: x for name, x in line.items() if name != BYTES} for line in read_costs(path)]


def read_costs(path: AnyPath) -> list[dict[str, Any]]:
    """Return the lines of `read_timings`, with what one peer sent: `bytes`, phase -> number."""
    return [value for value, _ in lines_of(path / TIMINGS)]


def steps_per_second(path: AnyPath) -> float | None:
    """Return how fast the run in this folder trained, evaluation and start not counted; None if that is not known."""
    lines = read_timings(path)
    spent = sum(seconds for line in lines for phase, seconds in line.items() if phase != "step")
    return len(lines) / spent if spent else None


def read_summary(path: AnyPath) -> dict[str, Any] | None:
    """Return a run folder's summary, None if it has none. Raises RunFolderError if it is damaged."""
    file = path / SUMMARY
    if not file.exists():
        return None
    try:
        summary = json.loads(read_bounded(file, MAX_SUMMARY) if isinstance(file, Path) else file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{file}: damaged ({error}); delete it, and the run finishes again") from None
    if not isinstance(summary, dict):
        raise RunFolderError(f"{file}: expected a JSON object; delete it, and the run finishes again")
    return summary


def _cut(file: Path, step: int) -> int:
    """Leave only the lines of steps before `step` in the file, and return how many they are."""
    kept = lines_before(file, step)
    write_file(file, b"".join(line + b"\n" for line in kept))
    return len(kept)
