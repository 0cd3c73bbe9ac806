"""The outcomes of the runs of a sweep: how far accuracy fell under an attack, when it recovered, who was banned when.

Everything is read from the files that finished runs leave behind. Accuracy is measured on `test_samples` images, at the
last step on all, and scatters accordingly; only what counts as recovered is judged by means of several measurements.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from btard.audit.files import CONFIG, LEDGER, METRICS
from btard.harness.packed import open_packed
from btard.harness.pieces import check_finished
from btard.harness.run_folder import RunFolderError, read_metrics, read_summary, steps_per_second
from btard.harness.sections import ProtocolSection
from btard.harness.settings import config_text, differing_keys, read_config
from btard.harness.typed_yaml import AnyPath, ConfigError
from resnet.config import AggregatorConfig, AttackConfig, Config, DataConfig
from resnet.experiments.grid import GRID_FILE, Cell, Experiment, Grid, read_grid
from resnet.experiments.plan import PACKED, RUNS
from resnet.experiments.warmup import warm_up_of
from resnet.table import Run

SPEEDS_FILE = "speeds.json"
"""Steps per second of the runs of an exported sweep, which has no timings: {name of the run: number}."""

RECOVERED_WITHIN = 3.0
"""A run is back when it stays, on average over `RECOVERY_WINDOW` measurements, within so many percentage points of the
run without attack until the end."""

RECOVERY_WINDOW = 5
"""One measured gap has a standard error of some 2 points on 1,000 test images: of many measurements, one would nearly
always lie 3 points off by chance, but hardly ever five in a row on average."""

PLACE = "data.path"
"""The setting that gives the place of the data on one machine, and says nothing about the run."""

ATTACK = "attack."

Curve = Mapping[int, float]
"""Steps done -> share of test images classified correctly after them, ascending."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """A finished run. Steps "after the start" are counted from the first step of its attack on.

    `reference` is the curve of the run that differs in nothing but that nobody attacks; if that is not finished and the
    peers run BTARD, the mean's without attack, and `borrowed` is true; None if that is not finished either. If the
    reference is longer, its accuracy at this run's last step was measured on fewer images.
    """

    cell: Cell
    run: Run
    curve: Curve
    reference: Curve | None
    borrowed: bool = False

    @property
    def summary(self) -> dict[str, Any]:
        assert self.run.summary is not None
        return self.run.summary

    @property
    def attacked(self) -> bool:
        return self.cell.config.attack.name is not None

    @property
    def start(self) -> int:
        return self.cell.config.attack.start

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last step, in [0, 1]."""
        return self.curve[self.cell.config.steps]

    @property
    def reference_accuracy(self) -> float | None:
        """The same without attack; None for a run without an attack, or without anything to compare with."""
        return self.reference.get(self.cell.config.steps) if self.reference is not None and self.attacked else None

    @cached_property
    def gaps(self) -> dict[int, float]:
        """Steps done -> percentage points below the run without attack, if both were measured after the start."""
        if self.reference is None or not self.attacked:
            return {}
        reference = self.reference
        return {
            step: round(100 * (reference[step] - accuracy), 9)  # so that 3 points are not 3.0000000000000027
            for step, accuracy in self.curve.items()
            if step > self.start and step in reference
        }

    @property
    def dip(self) -> float | None:
        """The largest of `gaps`, negative if the run was always better; None if there is nothing to compare with."""
        return max(self.gaps.values(), default=None)

    @property
    def recovery(self) -> int | None:
        """Steps after the start to the first measurement from which on, until the end, every `RECOVERY_WINDOW`
        measurements are on average at most `RECOVERED_WITHIN` points below the run without attack; 0 if that holds
        from the start on. None: never, or there is nothing to compare with."""
        steps, gaps = list(self.gaps), list(self.gaps.values())
        width = min(RECOVERY_WINDOW, len(gaps))
        windows = [sum(gaps[i : i + width]) / width for i in range(len(gaps) - width + 1)] if gaps else []
        back = len(windows)
        while back and round(windows[back - 1], 9) <= RECOVERED_WITHIN:
            back -= 1
        if back == len(windows):
            return None
        return steps[back] - self.start if back else 0

    @property
    def attackers(self) -> int:
        return len(self.summary["byzantine"])

    @cached_property
    def attacker_bans(self) -> list[int]:
        """Steps after the start at which attackers were banned, ascending."""
        return [ban["step"] - self.start for ban in self.run.bans if ban["byzantine"]]

    @property
    def first_ban(self) -> int | None:
        return min(self.attacker_bans, default=None)

    @property
    def last_ban(self) -> int | None:
        """The last ban of an attacker, whether or not others are left; None if there was none."""
        return max(self.attacker_bans, default=None)

    @cached_property
    def honest_bans(self) -> Counter[str]:
        """Kind of verdict -> honest peers banned."""
        return Counter(ban["kind"] for ban in self.run.bans if not ban["byzantine"])

    @property
    def diverged_at(self) -> int | None:
        return self.summary["diverged_at"]


@dataclass(frozen=True, eq=False)
class Series:
    """Finished runs of an experiment that differ only in their seed."""

    attack: str
    defence: str
    variant: str
    outcomes: tuple[Outcome, ...]

    @property
    def config(self) -> Config:
        return self.outcomes[0].cell.config

    @property
    def protocol(self) -> bool:
        """Whether the peers ran BTARD or its emulation; otherwise a server aggregated, and nobody could be banned."""
        return self.config.can_ban

    def values(self, measure: Callable[[Outcome], Any]) -> list[Any]:
        """`measure` of every run that has one."""
        return [value for value in map(measure, self.outcomes) if value is not None]


@dataclass(frozen=True, eq=False)
class Results:
    """A sweep in its present state. `outcomes`: name of the run -> its outcome, in the grid's order."""

    grid: Grid
    outcomes: Mapping[str, Outcome]
    speeds: Mapping[str, float]
    """Name of the run -> steps per second, if known."""

    def series(self, experiment: Experiment) -> tuple[Series, ...]:
        """The experiment's finished runs, grouped with those that differ only in the seed, in its cells' order."""
        groups: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
        for cell in experiment.cells:
            if cell.name in self.outcomes:
                # Cells of two experiments can be one run and yet vary something else.
                outcome = replace(self.outcomes[cell.name], cell=cell)
                groups[cell.attack, cell.defence, cell.variant].append(outcome)
        order = {name: place for place, name in enumerate(dict.fromkeys(cell.attack for cell in experiment.cells))}
        ranked = sorted(groups.items(), key=lambda item: order[item[0][0]])
        return tuple(Series(*key, tuple(outcomes)) for key, outcomes in ranked)

    def of(self, experiments: Iterable[Experiment]) -> list[Outcome]:
        """The finished runs of some experiments, each once."""
        names = {cell.name: None for experiment in experiments for cell in experiment.cells}
        return [self.outcomes[name] for name in names if name in self.outcomes]


def read_sweep(folder: Path) -> Grid:
    """Return the grid of the sweep in `folder`. RunFolderError if it holds none, ConfigError if it is damaged."""
    if not (folder / GRID_FILE).is_file():
        raise RunFolderError(f"{folder}: expected the folder of a sweep, found no {GRID_FILE} in it")
    return read_grid(folder / GRID_FILE)


def read_results(folder: Path, grid: Grid, listen: Callable[[], object] = lambda: None) -> Results:
    """Return the outcomes of the finished runs of `grid` in `folder`; `listen` is called after each run of it.

    Raises RunFolderError, one line, for a run with damaged files or with settings that are not the grid's.
    """
    runs: dict[str, Run] = {}
    packed = open_packed(folder / PACKED)
    trained_on: dict[DataConfig, tuple[str, str]] = {}
    for cell in grid.cells:
        inside = packed / cell.name if packed is not None else None
        path = inside if inside is not None and inside.exists() else folder / RUNS / cell.name
        run = _read_run(path, cell)
        if run is not None:
            runs[cell.name] = run
            if (digest := noted_digest(path)) is not None:
                first, other = trained_on.setdefault(cell.config.data, (digest, cell.name))
                if digest != first:
                    raise RunFolderError(
                        f"{path}: was trained on other data than {other} (data.digest {digest}, not {first}); {AGAIN}"
                    )
        listen()
    curves = {name: dict(zip(*run.accuracy, strict=True)) for name, run in runs.items()}
    find = _references(cell for cell in grid.cells if cell.name in runs)
    outcomes = {}
    for cell in grid.cells:
        if cell.name in runs:
            reference, borrowed = find(cell)
            curve = None if reference is None else curves[reference]
            outcomes[cell.name] = Outcome(cell, runs[cell.name], curves[cell.name], curve, borrowed)
    return Results(grid, outcomes, _read_speeds(folder, list(runs.values())))


def settings_by_key(config: Config) -> dict[str, Any]:
    """Return every setting by dotted key, in the order of the config's fields; options of an attack one by one.

    Of a run without attack not what an attack would do.
    """

    def flat(values: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from flat(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    quiet = config.attack.name is None
    return {k: v for k, v in flat(asdict(config), "") if not (quiet and k.startswith(ATTACK) and k != f"{ATTACK}name")}


def varied_keys(cells: Sequence[Cell]) -> list[str]:
    """Return the settings in which some of `cells` differ, except for the place of the data."""
    flat = [settings_by_key(cell.config) for cell in cells]
    attacked = [settings for settings in flat if settings[f"{ATTACK}name"] is not None]
    varied = []
    for key in dict.fromkeys(key for settings in flat for key in settings if key != PLACE):
        having = attacked if key.startswith(ATTACK) and key != f"{ATTACK}name" else flat
        if len({repr(settings.get(key)) for settings in having}) > 1:
            varied.append(key)
    return varied


def undefended(config: Config) -> Config:
    """Return the settings of the same run with plain averaging, which is like BTARD if that clips next to nothing."""
    rule = AggregatorConfig(name="mean")
    return replace(config, aggregator=rule, protocol=ProtocolSection(), byzantine=0, attack=AttackConfig())


def quiet_text(config: Config) -> str:
    """Return the settings that a run has in common with those that are equal to it until an attack starts, as text.

    Where a server aggregates, the protocol's settings do nothing, except for `clip_lambda`.
    """
    if not config.can_ban:
        config = replace(config, protocol=ProtocolSection(clip_lambda=config.protocol.clip_lambda))
    return config_text(warm_up_of(config))


def _references(finished: Iterable[Cell]) -> Callable[[Cell], tuple[str | None, bool]]:
    """Cell -> name of the finished run without attack that it is compared with, and whether that is another rule's."""
    quiet: dict[str, list[Cell]] = defaultdict(list)
    finished = list(finished)
    keys = {cell.name: quiet_text(cell.config) for cell in finished}
    for cell in finished:
        if cell.config.attack.name is None:
            quiet[keys[cell.name]].append(cell)

    def find(cell: Cell) -> tuple[str | None, bool]:
        own = quiet_run(keys[cell.name], cell.config.steps)
        if own is not None or not cell.config.can_ban:
            return own, False
        found = quiet_run(quiet_text(undefended(cell.config)), cell.config.steps)
        return found, found is not None

    def quiet_run(key: str, steps: int) -> str | None:
        # The one of equal length first: its last step was measured on as many images.
        candidates = [other for other in quiet.get(key, ()) if other.config.steps >= steps]
        return min(candidates, key=lambda other: other.config.steps).name if candidates else None

    return find


AGAIN = "delete the run's folder, and run the sweep again"

NEEDED = {
    "test_accuracy": (int, float),
    "bans": list,
    "byzantine": list,
    "diverged_at": (int, type(None)),
    "data": str,
    "device": str,
    "versions": dict,
}
"""Entries of a summary that figures and tables need, and their types."""


def _read_run(path: AnyPath, cell: Cell) -> Run | None:
    """The run if it is finished; RunFolderError if it is not what the grid says, or its files do not fit together."""
    summary = read_summary(path)
    if summary is None:
        return None
    _check_settings(path / CONFIG, cell)
    for key, kind in NEEDED.items():
        if not isinstance(summary.get(key), kind):  # type: ignore[arg-type]
            raise RunFolderError(f"{path}/summary.json: damaged: {key} is {summary.get(key)!r}; {AGAIN}")
    for ban in summary["bans"]:
        known = isinstance(ban, dict) and all(type(ban.get(key)) is int for key in ("step", "peer"))
        if not (known and type(ban.get("byzantine")) is bool and isinstance(ban.get("kind"), str)):
            raise RunFolderError(f"{path}/summary.json: damaged: a ban without step, peer, kind or side; {AGAIN}")
    exported = not isinstance(path, Path)  # which has only the metrics that figures need
    check_finished(path, summary, (LEDGER,) if exported else (METRICS, LEDGER))
    run = Run(path, cell.name, cell.config, read_metrics(path), summary)
    try:
        steps, accuracy = run.accuracy
    except (TypeError, ValueError):
        raise RunFolderError(f"{path}/metrics.jsonl: damaged: an accuracy is no number; {AGAIN}") from None
    last, every = cell.config.steps, cell.config.eval_every
    expected = sorted({*range(every, last + 1, every), last})
    if steps != expected:
        missing = min(set(expected) ^ set(steps), default=last)
        raise RunFolderError(f"{path}/metrics.jsonl: damaged around step {missing}: no accuracy as configured; {AGAIN}")
    if accuracy[-1] != summary["test_accuracy"]:
        raise RunFolderError(f"{path}: summary.json and metrics.jsonl differ in the last accuracy; {AGAIN}")
    return run


_DIGEST = re.compile(r"^  digest: (.*)\n", re.MULTILINE)
"""The line of a run's config.yaml that says which data it was trained on."""


def noted_digest(folder: AnyPath) -> str | None:
    """Return the digest of the data that the run in `folder` was trained on; None for a run that recorded none."""
    try:
        found = _DIGEST.search((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return None if found is None or found[1] == "null" else found[1].strip("'\"")


def _check_settings(file: AnyPath, cell: Cell) -> None:
    try:
        text = file.read_text(encoding="utf-8")
        if cell.config.data.digest is None and _DIGEST.sub("", text) == _DIGEST.sub("", config_text(cell.config)):
            return  # as nearly always; parsing takes longer
        differing = [entry for entry in differing_keys(read_config(Config, file), cell.config) if entry[0] != PLACE]
    except (OSError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{file}: cannot be read ({error}); {AGAIN}") from None
    except ConfigError as error:
        raise RunFolderError(str(error)) from None
    if differing:
        key, theirs, ours = differing[0]
        raise RunFolderError(f"{file}: has {key} {theirs}, where {GRID_FILE} says {ours}; {AGAIN}")


def _read_speeds(folder: Path, runs: Sequence[Run]) -> dict[str, float]:
    exported: Any = {}
    file = folder / SPEEDS_FILE
    if file.exists():
        try:
            exported = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(f"{file}: damaged ({error}); delete it to do without") from None
        numbers = exported.values() if isinstance(exported, dict) else [None]
        if not all(isinstance(value, float) and math.isfinite(value) for value in numbers):
            raise RunFolderError(f"{file}: expected a number for each run; delete it to do without")
    found = {run.label: exported.get(run.label) or steps_per_second(run.path) for run in runs}
    return {name: speed for name, speed in found.items() if speed}
