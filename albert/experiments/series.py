"""Runs the swarms of a grid one after another, and continues where it was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from albert.experiments.grid import BASELINE, Cell, Grid
from albert.experiments.local import LocalSwarms
from albert.experiments.results import is_finished
from btard.harness import tables
from btard.harness.progress import Bar, duration
from btard.harness.run_folder import read_summary, steps_per_second
from btard.harness.tables import bans_said
from btard.harness.typed_yaml import ConfigError
from btard.swarm.local import COORDINATOR


class Place(Protocol):
    """Where swarms run.

    Errors: ConfigError for settings that cannot work, DataError for data, CloudError if AWS refuses something.
    """

    own_display: bool
    """Whether it shows the progress of a swarm itself."""

    def put_data(self, folder: Path) -> None:
        """Bring the prepared data to the place where the swarms run."""

    def describe(self, grid: Grid, out: Path) -> None:
        """Print the cost of the unfinished swarms of `grid`, and what prevents them."""

    def check(self, cells: Sequence[Cell]) -> None:
        """Find mistakes that would make these swarms fail one after another."""

    def train(self, cell: Cell, out: Path, listen: Callable[[int], None]) -> str | None:
        """Run a swarm into its folder of `out`, and report its steps; returns what went wrong, in one line, or None."""

    def clean_up(self, grid: Grid, out: Path) -> None:
        """End and remove everything of the series that still runs; what the swarms have written stays."""


def place_of(mode: str, cloud: str | Path | None = None, changes: Sequence[str] = ()) -> Place:
    """Return the place "local" or "aws"; of that, `cloud` is the file of settings, and `changes` are words over them.

    Errors: ConfigError, CloudError without credentials.
    """
    if mode == "local":
        return LocalSwarms()
    if mode != "aws" or cloud is None:
        raise ConfigError(f"mode: expected local, or aws with its file of settings, got {mode} with {cloud}")
    from albert.experiments.aws import AwsSwarms

    return AwsSwarms.of_file(Path(cloud), changes)


def run_series(grid: Grid, out: Path, place: Place, *, show: bool = True) -> dict[str, str]:
    """Run the unfinished swarms of `grid` into `out`, one folder for each; returns name -> what went wrong.

    An interruption loses nothing: the same call goes on. Errors: ConfigError, RunFolderError.
    """
    todo = [cell for cell in grid.cells if not is_finished(cell, out)]
    place.check(todo)
    out.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    steps = sum(cell.steps for cell in todo)
    with Bar("series", steps, show=show and bool(todo) and not place.own_display) as bar:
        display = _Display(bar, out, show)
        for cell in todo:
            if cell.start_by is not None and BASELINE in failed:
                failed[cell.name] = "not begun, as it starts from the baseline, which failed"
                continue
            display.begin(cell)
            problem = place.train(cell, out, display.at)
            if problem is not None:
                failed[cell.name] = problem
            display.end(problem)
    return failed


def print_plan(grid: Grid, out: Path) -> None:
    """Print what there is to do, and how long it should take if that is known from swarms that are finished."""
    rows = []
    kinds: dict[tuple[str | None, str, int], list[Cell]] = {}
    for cell in grid.cells:
        kinds.setdefault((cell.attack, cell.defence, cell.config.attack.start), []).append(cell)
    for (attack, defence, start), cells in kinds.items():
        row = (
            f"baseline, nobody attacks ({defence})" if attack is None else f"{attack} against {defence}",
            "-" if attack is None else str(start),
            f"{cells[0].steps:,}",
            "-" if attack is None else ", ".join(str(cell.config.seed) for cell in cells),
            f"{sum(is_finished(cell, out) for cell in cells)} of {len(cells)}",
        )
        rows.append(row)
    tables.show(grid.title, ("swarms", ">attack from step", ">steps each", "seeds", ">finished"), rows)
    todo = [cell for cell in grid.cells if not is_finished(cell, out)]
    steps = sum(cell.steps for cell in todo)
    rate = _steps_per_second(grid.cells, out)
    about = f", about {duration(steps / rate)} by those that are finished" if rate and todo else ""
    print(f"{len(grid.cells)} swarms, {len(todo)} to run, {steps:,} steps, one swarm at a time{about}")


def _steps_per_second(cells: Sequence[Cell], out: Path) -> float | None:
    """The speed of the finished swarms, from the times of their steps."""
    known = [rate for cell in cells if (rate := steps_per_second(out / cell.name / COORDINATOR))]
    return len(known) / sum(1 / rate for rate in known) if known else None


class _Display:
    """One bar over the steps of all swarms, and a line for each swarm that ends."""

    def __init__(self, bar: Bar, out: Path, show: bool) -> None:
        self._bar, self.out, self.show = bar, out, show
        self._ended = 0

    def begin(self, cell: Cell) -> None:
        self._cell = cell
        self._bar.move(self._ended, cell.name)

    def at(self, step: int) -> None:
        """Show that the swarm has reached this step of its own count, which may begin at a checkpoint."""
        done = step - (self._cell.config.steps - self._cell.steps)
        self._bar.move(self._ended + max(0, min(done, self._cell.steps)))

    def end(self, problem: str | None) -> None:
        self._ended += self._cell.steps
        self._bar.move(self._ended)
        if self.show:
            self._bar.say(f"{self._cell.name}: {problem or outcome(self._cell, self.out)}")


def outcome(cell: Cell, out: Path) -> str:
    """How a finished swarm ended, in one line."""
    summary = read_summary(out / cell.name / COORDINATOR) or {}
    loss = summary.get("loss")
    text = "no loss" if loss is None else f"loss {loss:.2f}"
    if cell.attack is None:
        return text
    attackers = summary["byzantine"]
    steps = [ban["step"] for ban in summary["bans"] if ban["peer"] in attackers]
    text += f", {bans_said(len(attackers), steps)}"
    return text + (f", {summary['honest_banned']} honest peers removed" if summary["honest_banned"] else "")
