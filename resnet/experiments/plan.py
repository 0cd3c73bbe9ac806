"""What a sweep must do: warm-ups up to the steps where runs leave them, and the runs, in an order that can be split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from btard.audit.files import SUMMARY
from btard.harness.packed import open_packed
from btard.harness.run_folder import RunFolderError, read_summary
from resnet.config import Config
from resnet.experiments.grid import Cell
from resnet.experiments.warmup import fork_point, fork_step, warm_up_name, warm_up_of

RUNS, WARM_UPS = "runs", "warmups"
"""Folders in that of a sweep, beside its grid."""

PACKED = "runs.zip"
"""What an export holds instead of the folder of runs: the files of all of them, by the name of the run."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A warm-up from one fork point to the next."""

    config: Config
    folder: Path
    first: int
    last: int

    @property
    def done(self) -> bool:
        return fork_point(self.folder, self.last).exists()

    @property
    def steps(self) -> int:
        return self.last - self.first

    def __str__(self) -> str:
        return f"warm-up {self.folder.parent.name} {self.folder.name.rpartition('-')[0]} to step {self.last}"


@dataclass(frozen=True, eq=False)
class Branch:
    """A run of the grid, from the step where it leaves its warm-up; `warm_up` is None if it starts at step 0.

    A run that is `packed` is finished, and lies in the archive of an export instead of its folder.
    """

    cell: Cell
    folder: Path
    warm_up: Path | None
    fork: int
    packed: bool = False

    @property
    def done(self) -> bool:
        if self.packed:
            return True
        try:
            return read_summary(self.folder) is not None
        except RunFolderError:
            return False  # its training will say what is wrong

    @property
    def steps(self) -> int:
        return self.cell.config.steps - self.fork

    def __str__(self) -> str:
        return self.cell.name


Task = Segment | Branch


@dataclass(frozen=True)
class Plan:
    """Tasks in the order in which they begin; a task may begin when the tasks that it `needs` are done."""

    tasks: tuple[Task, ...]
    needs: dict[Task, Task]

    def todo(self) -> list[Task]:
        """The unfinished tasks, in order; without warm-ups whose runs are all finished."""
        wanted: set[Task] = set()
        for task in self.tasks:
            needed: Task | None = task if isinstance(task, Branch) else None
            while needed is not None and not needed.done:
                wanted.add(needed)
                needed = self.needs.get(needed)
        return [task for task in self.tasks if task in wanted]


def make_plan(cells: Sequence[Cell], folder: Path) -> Plan:
    """Return what there is to do for `cells` in `folder`: each run right after the part of a warm-up that it needs."""
    forks: dict[str, set[int]] = defaultdict(set)
    warm_ups: dict[str, Config] = {}
    branches: list[tuple[Branch, str]] = []
    packed = open_packed(folder / PACKED)
    for cell in cells:
        step, common = fork_step(cell.config), warm_up_of(cell.config)
        name = warm_up_name(common) if step > 0 else ""
        if name:
            warm_ups[name] = common
            forks[name].add(step)
        place = folder / WARM_UPS / name if name else None
        inside = packed is not None and (packed / cell.name / SUMMARY).exists()
        branches.append((Branch(cell, folder / RUNS / cell.name, place, step, inside), name))
    tasks: list[Task] = []
    needs: dict[Task, Task] = {}
    reached: dict[str, list[Segment]] = defaultdict(list)
    for branch, name in branches:
        for last in sorted(forks[name]) if name else ():
            before = reached[name][-1] if reached[name] else None
            if last > branch.fork or (before is not None and before.last >= last):
                continue
            segment = Segment(warm_ups[name], folder / WARM_UPS / name, before.last if before else 0, last)
            if before is not None:
                needs[segment] = before
            reached[name].append(segment)
            tasks.append(segment)
        if name:
            needs[branch] = next(segment for segment in reached[name] if segment.last == branch.fork)
        tasks.append(branch)
    return Plan(tuple(tasks), needs)


def shard(cells: Sequence[Cell], index: int, count: int) -> list[Cell]:
    """Return the share of machine `index` (from 1) of `count`: runs with a common warm-up stay together.

    Every machine that is given the same cells comes to the same division, whatever is finished. Shares are about equal
    in steps, as far as the warm-ups allow.
    """
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[warm_up_name(warm_up_of(cell.config))].append(cell)
    loads = [0] * count
    mine: set[str] = set()
    for group in sorted(groups.values(), key=_steps, reverse=True):  # the largest first, each to the least loaded share
        least = loads.index(min(loads))
        loads[least] += _steps(group)
        if least == index - 1:
            mine |= {cell.name for cell in group}
    return [cell for cell in cells if cell.name in mine]


def _steps(cells: Iterable[Cell]) -> int:
    cells = list(cells)
    own = {cell.name: (fork_step(cell.config), cell.config.steps) for cell in cells}
    return max(fork for fork, _ in own.values()) + sum(steps - fork for fork, steps in own.values())
