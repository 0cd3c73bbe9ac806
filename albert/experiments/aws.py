"""The swarms of a series on AWS, one after another: each is launched, waited for, fetched, and removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any
from urllib.parse import urlparse

import yaml
from blake3 import blake3

from albert.cloud.account import Account
from albert.cloud.config import AttackConfig
from albert.cloud.config import Config as CloudConfig
from albert.cloud.config import load as load_cloud_config
from albert.cloud.costs import dollars_per_hour
from albert.cloud.errors import CloudError, explained
from albert.cloud.fetch import fetch
from albert.cloud.launch import launch
from albert.cloud.plan import plan
from albert.cloud.records import has_finished, newest_checkpoint
from albert.cloud.run import Run
from albert.cloud.stop import stop
from albert.cloud.tables import span
from albert.cloud.wait import wait
from albert.config import Config
from albert.experiments.grid import BASELINE, Cell, Grid
from albert.experiments.results import is_finished
from btard.harness.progress import Bar
from btard.harness.settings import differing_keys, value_of
from btard.harness.tables import console, table
from btard.harness.typed_yaml import ConfigError
from btard.swarm.local import COORDINATOR

STEPS_PER_HOUR = 50.0
"""Steps per hour of the paper's swarm, which took 4 to 5 hours for 250 steps."""
SETUP_HOURS = 0.5
"""Hours until machines are there, and have installed and fetched everything."""
RESERVE = 1.5
"""A run may take this many times the expected hours before it ends by itself."""
LONGEST = 168.0
"""The largest number of hours that a run may last."""
LAUNCHES = 3
"""How often a swarm may lose its coordinator."""
STOP_PAUSES = (60.0, 120.0)
"""Seconds after which to try again to remove what is left."""
SHORT = 17
"""Maximum length of a series' run_id; that of each swarm is longer by a digest."""


class AwsSwarms:
    """Runs swarms on AWS; `config` has the machines, the cell what they train.

    Errors of all methods: CloudError, ConfigError.
    """

    own_display = True

    def __init__(self, config: CloudConfig) -> None:
        if config.bucket is None:
            raise ConfigError(
                "bucket: expected a name, got null; what swarms leave comes from it: --aws.bucket NAME, or in the "
                'notebook AWS_CHANGES = ["--bucket", "NAME"]'
            )
        if len(config.run_id) > SHORT:
            raise ConfigError(f"run_id: expected at most {SHORT} characters for a series, got {config.run_id}")
        self.config = config
        self.out = console()
        self.account = Account(config.region, config.profile)

    @classmethod
    def of_file(cls, path: Path, changes: Sequence[str] = ()) -> AwsSwarms:
        """From a file for `python -m albert.cloud`, with `--dotted.key value` words over it."""
        return cls(load_cloud_config(path, changes))

    def put_data(self, folder: Path) -> None:
        """Copy the prepared data to data.source, if that is a folder in S3; identical files are not copied again."""
        source = self.config.data.source
        if source is None:
            raise ConfigError(
                "data.source: expected where machines find the data, got null: --aws.data.source s3://..."
            )
        if self.config.data.is_archive or not source.startswith("s3://"):
            return
        place = urlparse(source)
        s3 = self.account.client("s3")
        with explained():
            there = {name: entry["Size"] for name, entry in self.account.files(source).items()}
            files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}
            new = {name: file for name, file in files.items() if there.get(name) != file.stat().st_size}
            total = sum(file.stat().st_size for file in new.values())
            with Bar("upload", total, unit="B", show=bool(new)) as bar:
                for name, file in new.items():
                    key = f"{place.path.strip('/')}/{name}"
                    s3.upload_file(str(file), place.netloc, key, Callback=bar.advance)
        self.out.print(f"{source}: {len(new)} files copied, {len(files) - len(new)} were there")

    def describe(self, grid: Grid, out: Path) -> None:
        """Print what the series will take in hours and dollars, and what prevents its first swarm."""
        todo = [cell for cell in grid.cells if not is_finished(cell, out)]
        if not todo:
            return
        first = self.run_of(todo[0], out, start_from=None)
        plan(first, self.out)
        low, high = dollars_per_hour(first)
        rows = []
        for cell in todo:
            hours = self.hours(cell)
            name = self.run_id(cell)
            rows.append([cell.name, name, f"{cell.steps:,}", f"{hours:.1f}", span(low * hours, high * hours)])
        total = sum(self.hours(cell) for cell in todo)
        steps = sum(cell.steps for cell in todo)
        rows.append(["all", "", f"{steps:,}", f"{total:.0f}", span(low * total, high * total)])
        columns = ("swarm", "AWS calls it", ">steps", ">hours", ">dollars")
        self.out.print(table("On AWS, one after another", columns, rows))
        self.out.print(f"at {STEPS_PER_HOUR:g} steps an hour; traffic between zones is not in it")

    def check(self, cells: Sequence[Cell]) -> None:
        """Each launch checks everything by itself, before it creates anything."""

    def train(self, cell: Cell, out: Path, listen: Callable[[int], None]) -> str | None:
        """Launch `cell`, or continue it, wait for its end, copy what its coordinator leaves into `out`, remove it.

        Returns what went wrong, in one line, or None. An interruption leaves the swarm alone: the same call goes on.
        """
        run = self.run_of(cell, out, self._checkpoint(cell))
        with explained():
            finished = has_finished(run)
        for launches in range(LAUNCHES):
            if finished:
                break
            try:
                launched = launch(run, self.out, lambda _question, default: default)
            except CloudError:
                if launches:  # nothing can be mended any more
                    break
                raise
            if not launched:
                return "was not launched; the reasons are printed above"
            finished = wait(run, self.out, listen)
        if finished:
            fetch(run, out / cell.name / COORDINATOR, self.out, checkpoints=False)
        if not self._removed(run):
            return f"has left something on AWS: `stop` run {run.config.run_id} again"
        if finished:
            return None
        return f"ended before its time, and its trainers' disks are gone; to begin again, empty {run.folder}"

    def clean_up(self, grid: Grid, out: Path) -> None:
        """Remove everything of the series that is on AWS. What is in the bucket stays."""
        for cell in grid.cells:
            self._removed(self.run_of(cell, out, start_from=None))

    def _removed(self, run: Run) -> bool:
        """Whether the run could be removed; what depends on a machine that is still ending goes later."""
        for pause in STOP_PAUSES:
            if stop(run, self.out):
                return True
            sleep(pause)
        return stop(run, self.out)

    def run_id(self, cell: Cell) -> str:
        """The name of the swarm on AWS, where names are short."""
        return self._named(cell.config.run_id)

    def hours(self, cell: Cell) -> float:
        """How long the swarm should take."""
        return SETUP_HOURS + cell.steps / STEPS_PER_HOUR

    def run_of(self, cell: Cell, out: Path, start_from: str | None) -> Run:
        """The run on AWS of a cell; its settings are written to a file of `out`."""
        config = replace(cell.config, start_from=None, peer=None, wandb=None)
        file = out / f"{cell.name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(_changed(config), sort_keys=False), encoding="utf-8")
        hours = self.hours(cell)
        cloud = replace(
            self.config,
            run_id=self.run_id(cell),
            hours=hours,
            max_hours=min(LONGEST, max(RESERVE * hours, hours + 1)),
            swarm=replace(self.config.swarm, config=str(file), start_from=start_from),
            attack=AttackConfig(name=None, start=None),
            trainers=replace(
                self.config.trainers, count=config.peers, byzantine=0 if cell.attack is None else config.byzantine
            ),
        )
        return Run(self.account, cloud)

    def _checkpoint(self, cell: Cell) -> str | None:
        """The address of the newest of the baseline's checkpoints that is old enough for the cell."""
        if cell.start_by is None:
            return None
        baseline = Run(self.account, replace(self.config, run_id=self._named(f"{_series(cell)}/{BASELINE}")))
        with explained():
            address = newest_checkpoint(baseline, by=cell.start_by)
        if address is None:
            raise CloudError(
                f"{baseline.folder}/checkpoints: expected one of step {cell.start_by} or before, found none; run the "
                "baseline"
            )
        return address

    def _named(self, run_id: str) -> str:
        return f"{self.config.run_id}-{blake3(run_id.encode()).hexdigest(3)}"


def _series(cell: Cell) -> str:
    """Prefix of the run_ids of all swarms of a series."""
    return cell.config.run_id.removesuffix(f"/{cell.name}")


def _changed(config: Config) -> dict[str, Any]:
    """The settings that are not the defaults, by dotted key: a machine's start-up script has no room for more."""
    defaults = Config()
    return {key: value for key, value, _ in differing_keys(config, defaults)} | {
        key: value
        for key in sorted(Config.free_to_change)
        if key.partition(".")[0] != "network" and (value := value_of(config, key)) != value_of(defaults, key)
    }
