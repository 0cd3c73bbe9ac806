"""The swarms of a series, as a YAML file describes them.

    title: what tables are headed with
    base: ../tiny.yaml                 # settings of all swarms, as for albert.swarm; beside this file
    settings: {checkpoint_every: 10}   # what differs from them
    attacks:                           # name in tables -> settings
      sign flip: {attack.name: sign_flip}
    defences:
      BTARD: {}
      mean: {protocol.tau: .inf, protocol.validators: 0}
    baseline: BTARD                    # the defence of a swarm from scratch that nobody attacks; null: none
    starts: [30, 60]                   # first steps of the attacks
    lead: 10                           # an attack begins from the baseline's newest checkpoint that is so much older
    after: 40                          # steps from an attack's start to the end
    seeds: [0, 1, 2]                   # who attacks, and every coin; or for each defence: {BTARD: [0, 1, 2], mean: [0]}

Every attack meets every defence, from every start, with every seed. Where an attack starts within the lead, or without
a baseline, the swarm begins from scratch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from albert.config import Config
from btard.harness.grid_file import check_keys, mapping, named_settings, section, slug, whole_numbers
from btard.harness.typed_yaml import ConfigError, Setting, build, nearest, read_mapping, read_settings, settings_of
from btard.swarm.config import AttackConfig

BASELINE = "baseline"
KEYS = ("title", "base", "settings", "attacks", "defences", "baseline", "starts", "lead", "after", "seeds")


@dataclass(frozen=True, eq=False)
class Cell:
    """One swarm of a series. `name` is its folder."""

    name: str
    attack: str | None
    """None: nobody attacks."""
    defence: str
    config: Config
    start_by: int | None = None
    """It starts from the baseline's newest checkpoint that is no later than this step. None: from scratch."""

    @property
    def steps(self) -> int:
        """How many steps it takes, or a few more: the steps of checkpoints vary."""
        every = self.config.checkpoint_every
        return self.config.steps - (0 if self.start_by is None else self.start_by // every * every)


@dataclass(frozen=True)
class Grid:
    """All swarms of a file, in the order in which to run them."""

    title: str
    baseline: Cell | None
    attacks: tuple[Cell, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The baseline first, if there is one."""
        return (*((self.baseline,) if self.baseline is not None else ()), *self.attacks)

    def only(self, names: Sequence[str], origin: str) -> Grid:
        """Return the grid with only these attacks. Raises ConfigError for one that it does not have."""
        known = dict.fromkeys(cell.attack for cell in self.attacks if cell.attack is not None)
        for name in names:
            if name not in known:
                raise ConfigError(f"{origin}: no attack {name!r}, there are {', '.join(known)}")
        return replace(self, attacks=tuple(cell for cell in self.attacks if cell.attack in names))


def read_grid(path: Path, changes: Mapping[str, Setting] | None = None) -> Grid:
    """Return the grid in a YAML file, with `changes` (as from a command line) in every swarm.

    Raises ConfigError, one line, for whatever is wrong with the file or with the settings of a swarm.
    """
    content, origin = read_mapping(path), str(path)
    check_keys(content, KEYS, origin, one=(Config, "python -m albert.swarm"))
    if not isinstance(content.get("base"), str):
        raise ConfigError(f"{origin}: base: expected the name of a file beside it, got {content.get('base')!r}")
    settings = read_settings(path.parent / content["base"], Config)
    settings |= settings_of(section(content, "settings", origin), Config, origin) | dict(changes or {})
    attacks = named_settings(content, "attacks", Config, origin)
    defences = named_settings(content, "defences", Config, origin)
    starts = whole_numbers(content.get("starts"), f"{origin}: starts")
    lead, after = _positive(content, "lead", origin), _positive(content, "after", origin)
    seeds = _seeds(content, defences, origin)

    def config(*changed: Mapping[str, Setting], name: str, **own: Any) -> Config:
        merged = dict(settings)
        for change in changed:
            merged |= change
        merged |= {key: Setting(value, origin) for key, value in own.items()}
        try:
            found = build(Config, merged, origin)
            return replace(found, run_id=f"{found.run_id}/{name}")
        except ConfigError as error:
            raise ConfigError(f"{error} ({name})") from None

    baseline = None
    defence = content.get("baseline", next(iter(defences)))
    if defence is not None:
        if defence not in defences:
            raise ConfigError(f"{origin}: baseline: {defence!r} is no defence; {nearest(str(defence), defences)}")
        calm = config(defences[defence], name=BASELINE, steps=max(starts) + after, **{"attack.name": None})
        baseline = Cell(BASELINE, None, defence, replace(calm, attack=AttackConfig()))
    cells = []
    for seed in dict.fromkeys(seed for chosen in seeds.values() for seed in chosen):
        for start in starts:
            for attack in attacks:
                for defence in (name for name in defences if seed in seeds[name]):
                    name = f"{slug(attack)}-from-{start}-{slug(defence)}-seed-{seed}"
                    own = {"steps": start + after, "attack.start": start, "seed": seed}
                    built = config(defences[defence], attacks[attack], name=name, **own)
                    if built.attack.name is None:
                        raise ConfigError(f"{origin}: attacks.{attack}: attack.name is missing")
                    start_by = start - lead if baseline is not None and start > lead else None
                    cells.append(Cell(name, attack, defence, built, start_by))
    grid = Grid(str(content.get("title") or path.stem), baseline, tuple(cells))
    _check(grid, origin)
    return grid


def _check(grid: Grid, origin: str) -> None:
    names = [cell.name for cell in grid.cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{origin}: two swarms would be {twice}: rename an attack or a defence")
    if grid.baseline is None:
        return
    every = grid.baseline.config.checkpoint_every
    for cell in grid.attacks:
        if cell.start_by is not None and cell.start_by < every:
            raise ConfigError(
                f"{origin}: the first checkpoint is at step {every} (checkpoint_every), too late for an attack from "
                f"step {cell.config.attack.start} with lead {cell.config.attack.start - cell.start_by}; lower "
                "settings.checkpoint_every"
            )


def _positive(content: Mapping[str, Any], key: str, origin: str) -> int:
    value = content.get(key)
    if type(value) is not int or value < 1:
        raise ConfigError(f"{origin}: {key}: expected a whole number from 1 on, got {value!r}")
    return value


def _seeds(content: Mapping[str, Any], defences: Mapping[str, Any], origin: str) -> dict[str, tuple[int, ...]]:
    """The seeds of each defence."""
    given = content.get("seeds", [0])
    if not isinstance(given, Mapping):
        return dict.fromkeys(defences, whole_numbers(given, f"{origin}: seeds"))
    check_keys(given, tuple(defences), f"{origin}: seeds")
    return {name: whole_numbers(mapping(given, origin).get(name), f"{origin}: seeds.{name}") for name in defences}
