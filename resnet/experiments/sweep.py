"""Trains the runs of a grid that are not finished yet, into the folder of a sweep; says what that takes."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from btard.audit.files import CHECKPOINTS, CONFIG
from btard.files import write_file
from btard.harness import tables
from btard.harness.progress import Bar, duration
from btard.harness.run_folder import RunFolderError, read_summary, steps_per_second
from resnet.cohort import check_rule
from resnet.config import Config
from resnet.data import DataError, load_dataset
from resnet.experiments.grid import GRID_FILE, Cell, Grid
from resnet.experiments.outcomes import noted_digest
from resnet.experiments.plan import RUNS, Branch, Plan, Task, make_plan, shard
from resnet.experiments.workers import Progress, run_tasks
from resnet.training import Training

PROBE_STEPS = 4
"""Number of steps that are timed if nothing has been trained yet; the first one does not count."""


def sweep(
    grid: Grid,
    out: Path,
    *,
    jobs: int = 1,
    part: tuple[int, int] = (1, 1),
    keep_checkpoints: bool = False,
    show: bool = True,
) -> Progress:
    """Train the unfinished runs of `grid` into `out`, `jobs` runs at a time; returns what failed.

    `part` = (i, k): only the i-th of k shares. The same grid, seed and machine give the same files, however often this
    was interrupted, but for timings.jsonl. Errors: ConfigError for settings that cannot work, RunFolderError if `out`
    holds another grid, DataError for missing data; all before anything is trained.
    """
    cells = shard(grid.cells, *part)
    for cell in grid.cells:
        check_rule(cell.config)
    _claim(out, grid)
    plan = make_plan(cells, out)
    for task in plan.tasks:  # left by an interruption between the end of a run and its tidying up
        if isinstance(task, Branch) and task.done and not keep_checkpoints:
            shutil.rmtree(task.folder / CHECKPOINTS, ignore_errors=True)
    todo = plan.todo()
    for data in {_config(task).data for task in todo}:  # once, before several workers would all download them
        load_dataset(data.name, data.path, label=data.label)
    if show:
        print_plan(grid, cells, plan, jobs, estimate(todo, out, jobs))
    if not todo:
        return Progress()
    _check_data(plan, out)
    with Bar("sweep", sum(task.steps for task in todo), show=show) as bar:
        return run_tasks(plan, todo, jobs, _Display(bar).update, keep_checkpoints=keep_checkpoints)


def _claim(out: Path, grid: Grid) -> None:
    """Write the grid into `out`. Another grid may replace it as long as runs of the same name stay the same."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{out}: cannot be used for a sweep: {error.strerror}") from None
    file, content = out / GRID_FILE, grid.text.encode()
    # Other machines may begin their shares of the same sweep at this moment.
    strangers = [entry.name for entry in out.iterdir() if not entry.name.startswith(f".{GRID_FILE}.")]
    if strangers and not file.exists():
        raise RunFolderError(f"{out}: holds other files ({min(strangers)}) and no sweep; choose another --out")
    if not file.exists() or file.read_bytes() != content:
        write_file(file, content, shared=True)


def _check_data(plan: Plan, out: Path) -> None:
    """Raise RunFolderError if finished runs were trained on other data than there are now."""
    noted = {
        (task.cell.config.data, digest): task
        for task in plan.tasks
        if isinstance(task, Branch) and task.done and (digest := noted_digest(task.folder)) is not None
    }
    for (data, digest), task in noted.items():
        now = load_dataset(data.name, data.path, label=data.label).digest
        if now != digest:
            raise RunFolderError(
                f"{task.folder}: was trained on other data (data.digest {digest}) than there are now ({now}); restore "
                f"them, or choose another --out than {out}"
            )


def _config(task: Task) -> Config:
    return task.cell.config if isinstance(task, Branch) else task.config


def estimate(todo: Sequence[Task], out: Path, jobs: int) -> float | None:
    """Seconds that `todo` will take, from runs that are finished in `out`, else from a few steps on this machine.

    It is rough: after bans a step is faster, and runs side by side slow each other down. None where neither is there,
    nor the data.
    """
    known: dict[str, float] = {}
    total = 0.0
    for task in todo:
        config = _config(task)
        rule = config.aggregator.name
        if rule not in known:
            try:
                known[rule] = _seconds_per_step(config, out)
            except DataError:
                return None
        total += known[rule] * task.steps
    return total / max(1, min(jobs, len(todo)))


def _seconds_per_step(config: Config, out: Path) -> float:
    for folder in sorted((out / RUNS).glob("**/summary.json")):
        if f"name: {config.aggregator.name}\n" in (folder.parent / CONFIG).read_text(encoding="utf-8"):
            speed = steps_per_second(folder.parent)
            if speed:
                return 1 / speed
    data = load_dataset(config.data.name, config.data.path, label=config.data.label, download=False)
    with tempfile.TemporaryDirectory() as place:
        # Without its attack and test set; what remains is most of the time.
        quiet = replace(config, eval_every=config.steps, attack=type(config.attack)(), byzantine=0)
        training = Training(quiet, data, Path(place))
        training.step(0)
        started = time.perf_counter()
        for step in range(1, PROBE_STEPS):
            training.step(step)
        return (time.perf_counter() - started) / (PROBE_STEPS - 1)


def print_plan(grid: Grid, cells: Sequence[Cell], plan: Plan, jobs: int, seconds: float | None) -> None:
    """Print what there is to do, and how long it should take."""
    mine = {cell.name for cell in cells}
    finished = {str(task) for task in plan.tasks if isinstance(task, Branch) and task.done}
    rows = []
    for experiment in grid.experiments:
        chosen = [cell for cell in experiment.cells if cell.name in mine]
        attacks, defences = ({getattr(cell, kind) for cell in chosen} for kind in ("attack", "defence"))
        counts = len(attacks), len(defences), len(chosen), sum(cell.name in finished for cell in chosen)
        rows.append([experiment.title, *map(str, counts)])
    tables.show(grid.title, ("experiment", ">attacks", ">defences", ">runs", ">finished"), rows)
    todo = plan.todo()
    runs = sum(isinstance(task, Branch) for task in todo)
    print(
        f"{len(cells)} different runs, {runs} to train, {len(todo) - runs} parts of warm-ups, "
        f"{sum(task.steps for task in todo):,} steps, {jobs} at a time: "
        + ("how long is not known before the data are there." if seconds is None else f"about {duration(seconds)}.")
    )


class _Display:
    """One bar over all steps, the runs in progress, and a line for each run that ends."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._done = bar, 0
        self._failed: set[Task] = set()

    def update(self, progress: Progress) -> None:
        for task in progress.failed.keys() - self._failed:
            self._failed.add(task)
            self._bar.say(f"failed: {task}: {progress.failed[task]}")
        for task, seconds in progress.finished:
            self._done += task.steps
            self._bar.say(f"{task}: {_outcome(task)} ({duration(seconds)})")
        running = 0
        for task, steps in progress.running.items():
            first = task.fork if isinstance(task, Branch) else task.first
            running += max(0, min(steps, first + task.steps) - first)
        self._bar.move(self._done + running, ", ".join(str(task) for task in progress.running)[-60:])


def _outcome(task: Task) -> str:
    summary = read_summary(task.folder) if isinstance(task, Branch) else None
    if summary is None:
        return "done"
    text = f"{summary['test_accuracy']:.1%}"
    if summary["byzantine"] and summary["validation"]:
        steps = [ban["step"] for ban in summary["bans"] if ban["byzantine"]]
        text += f", {tables.bans_said(len(summary['byzantine']), steps)}"
    return text + (f", {summary['honest_banned']} honest peers banned" if summary["honest_banned"] else "")
