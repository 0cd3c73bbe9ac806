"""Finished swarms, read from the files of their coordinators."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from albert.experiments.grid import Cell
from btard.audit.files import CONFIG, LEDGER, METRICS, SUMMARY, TIMINGS
from btard.harness.packed import open_packed, pack
from btard.harness.pieces import check_finished
from btard.harness.run_folder import RunFolderError, read_metrics, read_summary, read_timings
from btard.harness.typed_yaml import AnyPath
from btard.swarm.local import COORDINATOR

PACKED = "swarms.zip"
"""The contents of an export: for each swarm its settings and the files in `KEPT`, by its name."""
KEPT = (METRICS, TIMINGS, LEDGER, SUMMARY)
PRIVATE = ("network", "data", "start_from", "wandb")
"""Settings with paths on one machine, or with names of its owner."""
NO_ATTACK = "no attack"
NAMES = {"random_direction": "constant direction", "ipm": "IPM", "alie": "ALIE"}
MEAN, BTARD = "mean", "BTARD"


@dataclass(frozen=True)
class Swarm:
    """A finished swarm, by its coordinator's files."""

    name: str
    """The name of the swarm's folder."""
    folder: AnyPath
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def defence(self) -> str:
        """The mean, or BTARD, with what is not as in the paper: another tau, healing."""
        protocol = {"heal": "off"} | self.config["protocol"]  # runs from before there was healing
        tau, heal = protocol["tau"], protocol["heal"]
        if tau == float("inf"):
            return MEAN
        radius = "" if tau == 0.125 else f", tau {tau if isinstance(tau, str) else format(tau, 'g')}"
        return f"{BTARD}{radius}{'' if heal == 'off' else ', healed'}"

    @property
    def attack(self) -> str:
        """The attack, by the paper's name."""
        attack = self.config["attack"]
        if attack["name"] is None:
            return NO_ATTACK
        options = ", ".join(f"{name} {value}" for name, value in attack["options"].items())
        name = NAMES.get(attack["name"], attack["name"].replace("_", " "))
        return f"{name} ({options})" if options else name

    @property
    def start(self) -> int | None:
        """First step of the attack, None without one."""
        return None if self.attack == NO_ATTACK else int(self.config["attack"]["start"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def removals(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(step of the run, entry) of the ledger, whose own steps count from where the swarm began."""
        known = {ban["peer"]: ban["step"] for ban in self.summary["bans"]}
        first = next((known[e["peers"][0]] - e["step"] for e in self.ledger if e["peers"]), self.metrics[0]["step"])
        for entry in self.ledger:
            yield first + entry["step"], entry

    @property
    def bans(self) -> list[int]:
        """The steps in which attackers were banned, ascending."""
        attackers = self.summary["byzantine"]
        return sorted(ban["step"] for ban in self.summary["bans"] if ban["peer"] in attackers)

    @property
    def honest_removed(self) -> list[int]:
        """The steps in which honest peers were removed, ascending."""
        attackers = self.summary["byzantine"]
        return sorted(ban["step"] for ban in self.summary["bans"] if ban["peer"] not in attackers)

    @property
    def healings(self) -> list[int]:
        """The steps in which everybody went back to an earlier state, ascending."""
        return self.series("back_to")[0]

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, as far as known."""
        pairs = [(line["step"], line[key]) for line in self.metrics if line.get(key) is not None]
        return [step for step, _ in pairs], [value for _, value in pairs]


def read_swarms(folder: Path) -> list[Swarm]:
    """The finished swarms in `folder`, or in the archive of an export there, by name.

    Errors: RunFolderError if there is none, or the archive is damaged.
    """
    swarms = []
    place: AnyPath = open_packed(folder / PACKED) or folder
    entries: list[AnyPath] = [*place.iterdir()] if place.is_dir() else []
    for entry in sorted(entries, key=lambda entry: entry.name):
        run = entry / COORDINATOR if (entry / COORDINATOR).is_dir() else entry
        summary = read_summary(run) if (run / CONFIG).exists() else None
        if summary is None:
            continue
        check_finished(run, summary, (METRICS, LEDGER), "copy the folder again as a whole")
        config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
        ledger = run / LEDGER
        lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
        removals = [json.loads(line) for line in lines]
        swarms.append(Swarm(entry.name, run, config, read_metrics(run), read_timings(run), removals, summary))
    if not swarms:
        raise RunFolderError(f"{folder}: holds no swarm that came to its end; python -m albert.experiments makes some")
    return swarms


def export(swarms: Sequence[Swarm], target: Path) -> None:
    """Pack the data of a report into an archive in `target`, without paths on this machine."""
    contents: dict[str, bytes] = {}
    for swarm in swarms:
        public = {key: value for key, value in swarm.config.items() if key not in PRIVATE}
        contents[f"{swarm.name}/config.yaml"] = yaml.safe_dump(public, sort_keys=False).encode()
        files = {name: swarm.folder / name for name in KEPT}
        contents |= {f"{swarm.name}/{name}": file.read_bytes() for name, file in files.items() if file.exists()}
    pack(target / PACKED, contents)


def is_finished(cell: Cell, out: Path) -> bool:
    """Whether the swarm reached its end. Errors: RunFolderError if its summary is damaged."""
    return read_summary(out / cell.name / COORDINATOR) is not None
