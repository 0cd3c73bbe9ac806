"""A swarm of a series on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from albert.commands import TASK
from albert.data.corpus import Corpus
from albert.experiments.grid import BASELINE, Cell, Grid
from btard.audit.files import SUMMARY
from btard.swarm.checkpoint import checkpoint_before
from btard.swarm.local import COORDINATOR, LOOK, Swarm

LAST = 60.0
"""Seconds that the processes get to end by themselves once the coordinator has."""


class LocalSwarms:
    """Runs swarms as processes of this machine, one swarm at a time. They end with the call, however it ends."""

    own_display = False

    def put_data(self, folder: Path) -> None:
        """Nothing to do: the data are where they are needed."""

    def describe(self, grid: Grid, out: Path) -> None:
        """Nothing to do: there is nothing to pay, and `print_plan` says everything else."""

    def check(self, cells: Sequence[Cell]) -> None:
        """Errors: DataError if the data of one of them are missing or broken."""
        for path in {cell.config.data.path for cell in cells}:
            Corpus(path)

    def clean_up(self, grid: Grid, out: Path) -> None:
        """Nothing to do: nothing is left running."""

    def train(self, cell: Cell, out: Path, listen: Callable[[int], None]) -> str | None:
        """Run `cell` into its folder of `out`, or continue it; calls `listen` with the step that it has reached.

        Returns what went wrong, in one line, or None. Errors: ConfigError if the baseline has no checkpoint for it.
        """
        config = cell.config
        if cell.start_by is not None:
            config = replace(config, start_from=str(checkpoint_before(out / BASELINE / COORDINATOR, cell.start_by)))
        folder = out / cell.name
        with Swarm(config, folder, TASK) as swarm:
            try:
                swarm.start()
            except RuntimeError as error:
                return " ".join(str(error).split())
            while COORDINATOR in (alive := swarm.alive()) and len(alive) > 1:
                listen(int(swarm.status().get("step", 0)))
                time.sleep(LOOK)
            swarm.wait(LAST)
        if (folder / COORDINATOR / SUMMARY).exists():
            return None
        return f"did not come to its end; what its processes printed: {folder}/logs"
