"""A grid of runs, as a YAML file describes it: attacks, defences, and experiments that combine them.

    title: what figures and tables are headed with
    base: another.yaml                 # settings of all runs, as for resnet.train; beside this file
    settings: {steps: 400}             # what differs from them
    seeds: [0, 1, 2]
    attacks:                           # name in figures -> settings
      no attack: {}
      sign flip: {attack.name: sign_flip}
    defences:
      BTARD, tau 1: {aggregator.name: btard, protocol.tau: 1}
    experiments:                       # every attack with every defence, every combination of `vary`, every seed
      early:
        title: Attack from step 80 on
        about: What it shows.
        attacks: all                   # or a list of names
        defences: all
        settings: {byzantine: 7, attack.start: 80}
        vary: {protocol.validators: [1, 2]}
        seeds: [0]                     # instead of the file's

Cells of several experiments with the same settings are one run. An attack without a name is a run without attack:
`byzantine` then says what the defence is made for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from btard.harness.grid_file import check_keys, mapping, named_settings, section, slug, whole_numbers
from btard.harness.settings import value_of
from btard.harness.typed_yaml import (
    ConfigError,
    Setting,
    build,
    converted,
    nearest,
    read_mapping,
    read_settings,
    settings_of,
)
from btard.named import own
from resnet.config import FOR_A_NUMBER, Config

GRID_FILE = "sweep.yaml"
"""The name of the grid in the folder of a sweep."""
ALL = "all"

NOT_SET = Setting(None, "")

GRID_KEYS = ("title", "base", "settings", "seeds", "attacks", "defences", "experiments")
EXPERIMENT_KEYS = ("title", "about", "attacks", "defences", "settings", "vary", "seeds")


@dataclass(frozen=True, eq=False)
class Cell:
    """One run of a grid. `name` is its folder below runs/; equal names are equal runs."""

    name: str
    attack: str
    defence: str
    varied: tuple[tuple[str, Any], ...]
    """What the experiment varies besides attack, defence and seed: (dotted key, value)."""
    config: Config

    @property
    def seed(self) -> int:
        return self.config.seed

    @property
    def variant(self) -> str:
        """The varied values for people, such as "validators 2"; empty if nothing varies."""
        return ", ".join(f"{short(key)} {value}" for key, value in self.varied)


@dataclass(frozen=True)
class Experiment:
    """A figure's worth of cells, in the order of seeds, then variants, attacks and defences."""

    name: str
    title: str
    about: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Grid:
    """All experiments of a file. `text` is the grid as YAML that `parse_grid` reads back without any other file."""

    title: str
    experiments: tuple[Experiment, ...]
    text: str = field(repr=False)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every run once, in the order of the experiments."""
        return tuple({cell.name: cell for experiment in self.experiments for cell in experiment.cells}.values())

    def only(self, names: Sequence[str], origin: str) -> Grid:
        """Return the grid with only the experiments `names`. Raises ConfigError for a name that it does not have."""
        known = [experiment.name for experiment in self.experiments]
        for name in names:
            if name not in known:
                raise ConfigError(f"{origin}: no experiment {name!r}, there are {', '.join(known)}")
        return replace(self, experiments=tuple(e for e in self.experiments if e.name in names))


def read_grid(path: Path, changes: Mapping[str, Setting] | None = None) -> Grid:
    """Return the grid in a YAML file, with `changes` (as from a command line) in every run.

    Raises ConfigError, one line, for whatever is wrong with the file or with the settings of a run.
    """
    content = dict(read_mapping(path))
    base: dict[str, Setting] = {}
    if content.get("base") is not None:
        if not isinstance(content["base"], str):
            raise ConfigError(f"{path}: base must be the name of a file beside it, got {content['base']!r}")
        base = read_settings(path.parent / content["base"], Config)
    del_base = {key: value for key, value in content.items() if key != "base"}
    own = settings_of(section(content, "settings", str(path)), Config, str(path))
    return parse_grid(del_base, str(path), base | own | dict(changes or {}))


def parse_grid(content: Mapping[str, Any], origin: str, settings: Mapping[str, Setting] | None = None) -> Grid:
    """Return the grid in `content`; `settings` instead of its own, if given. `origin` appears in error messages."""
    check_keys(content, GRID_KEYS, origin, one=(Config, "python -m resnet.train"))
    if settings is None:
        settings = settings_of(section(content, "settings", origin), Config, origin)
    attacks = named_settings(content, "attacks", Config, origin)
    defences = named_settings(content, "defences", Config, origin)
    experiments = section(content, "experiments", origin)
    if not experiments:
        raise ConfigError(f"{origin}: experiments: expected at least one")
    drafts = [
        _Draft.of(name, mapping(entry, f"{origin}: experiments.{name}"), content, attacks, defences, origin)
        for name, entry in experiments.items()
    ]
    built = tuple(draft.build(dict(settings), attacks, defences) for draft in drafts)
    _by_name((cell for experiment in built for cell in experiment.cells), origin)
    return Grid(str(content.get("title") or Path(origin).stem), built, _resolved(content, settings))


@dataclass(frozen=True)
class _Draft:
    """An experiment as it is written in the file."""

    name: str
    title: str
    about: str
    attacks: tuple[str, ...]
    defences: tuple[str, ...]
    settings: dict[str, Setting]
    vary: dict[str, list[Setting]]
    seeds: tuple[int, ...]
    origin: str

    @classmethod
    def of(
        cls,
        name: str,
        entry: Mapping[str, Any],
        content: Mapping[str, Any],
        attacks: Mapping[str, Any],
        defences: Mapping[str, Any],
        origin: str,
    ) -> _Draft:
        where = f"{origin}: experiments.{name}"
        check_keys(entry, EXPERIMENT_KEYS, where)
        vary: dict[str, list[Setting]] = {}
        for key, values in section(entry, "vary", where).items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{where}: vary.{key}: expected a list of values, got {values!r}")
            vary[key] = [settings_of({key: value}, Config, where)[key] for value in values]
        seeds = whole_numbers(entry.get("seeds", content.get("seeds", [0])), f"{where}: seeds")
        return cls(
            name,
            str(entry.get("title", name)),
            " ".join(str(entry.get("about", "")).split()),
            _choice(entry, "attacks", attacks, where),
            _choice(entry, "defences", defences, where),
            settings_of(section(entry, "settings", where), Config, where),
            vary,
            seeds,
            where,
        )

    def build(
        self,
        settings: Mapping[str, Setting],
        attacks: Mapping[str, dict[str, Setting]],
        defences: Mapping[str, dict[str, Setting]],
    ) -> Experiment:
        usual = converted(settings, Config)
        cells = []
        for seed in self.seeds:
            for values in itertools.product(*self.vary.values()):
                varied = dict(zip(self.vary, values, strict=True))
                for attack, defence in itertools.product(self.attacks, self.defences):
                    merged = {**settings, **self.settings, **varied, **defences[defence], **attacks[attack]}
                    merged["seed"] = Setting(seed, self.origin)
                    config = self._config(merged, f"{attack!r} against {defence!r}")
                    shown = tuple((key, value_of(config, key)) for key in self.vary)
                    unusual = [
                        key
                        for key in (*self.settings, *self.vary)
                        if key not in (*attacks[attack], *defences[defence])
                        and value_of(config, key) != usual.get(key, value_of(Config(), key))
                    ]
                    cells.append(Cell(_folder(config, attack, defence, unusual), attack, defence, shown, config))
        return Experiment(self.name, self.title, self.about, tuple(_by_name(cells, self.origin).values()))

    def _config(self, merged: dict[str, Setting], what: str) -> Config:
        if merged.get("attack.name", NOT_SET).value is None:
            # Nobody attacks, but the defence does not know that.
            attackers = merged.pop("byzantine", None)
            merged = {key: setting for key, setting in merged.items() if not key.startswith("attack.")}
            rule = str(merged.get("aggregator.name", NOT_SET).value)
            mixed = merged.get("aggregator.mixing", NOT_SET).value == "nnm"
            if attackers is not None and (rule in FOR_A_NUMBER or own(rule) or mixed):
                merged.setdefault("aggregator.byzantine", attackers)
        try:
            return build(Config, merged, self.origin)
        except ConfigError as error:
            raise ConfigError(f"{error} ({what})") from None


def _by_name(cells: Iterable[Cell], origin: str) -> dict[str, Cell]:
    found: dict[str, Cell] = {}
    for cell in cells:
        if found.setdefault(cell.name, cell).config != cell.config:
            raise ConfigError(f"{origin}: two different runs would be {cell.name}: rename an attack or a defence")
    return found


def _folder(config: Config, attack: str, defence: str, unusual: Sequence[str]) -> str:
    """Named after what differs from the grid's settings, so that a grid can grow and its runs keep their names."""
    values = {key: value_of(config, key) for key in unusual}
    if config.attack.name is None:
        values = {key: value for key, value in values.items() if not key.startswith("attack.")}
        if "byzantine" in values:
            values["byzantine"] = config.aggregator.byzantine
    shown = [f"{short(key)}-{value}" for key, value in sorted(values.items()) if value is not None]
    parts = [slug(defence), slug(attack), slug("_".join(shown)), f"seed-{config.seed}"]
    return "/".join(part for part in parts if part)


def short(key: str) -> str:
    """Return the short name of a dotted key: its last word."""
    return key.rpartition(".")[2]


def _choice(entry: Mapping[str, Any], key: str, known: Mapping[str, Any], where: str) -> tuple[str, ...]:
    chosen = entry.get(key, ALL)
    if chosen == ALL:
        return tuple(known)
    if not isinstance(chosen, list) or not chosen:
        raise ConfigError(f"{where}: {key}: expected {ALL!r} or a list of names, got {chosen!r}")
    for name in chosen:
        if name not in known:
            raise ConfigError(f"{where}: {key}: {name!r} is not among the file's {key}; {nearest(str(name), known)}")
    return tuple(chosen)


def _resolved(content: Mapping[str, Any], settings: Mapping[str, Setting]) -> str:
    """The grid on its own: its settings include what its base and the command line say."""
    plain = {key: value for key, value in content.items() if key != "settings"}
    values = dict(sorted(converted(settings, Config).items()))
    return yaml.safe_dump({"settings": values, **plain}, sort_keys=False, allow_unicode=True, width=120)
