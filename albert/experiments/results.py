"""Finished swarms, read from the files of their coordinators."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from btard.harness.run_folder import RunFolderError, read_metrics, read_summary, read_timings
from btard.swarm.local import COORDINATOR

KEPT = ("config.yaml", "metrics.jsonl", "timings.jsonl", "ledger.jsonl", "summary.json")
PRIVATE = ("network", "data", "start_from", "wandb")
"""Settings that say where something lay on one machine, or whose it was."""
NO_ATTACK = "no attack"
NAMES = {"random_direction": "constant direction", "ipm": "IPM", "alie": "ALIE"}
MEAN, BTARD = "mean", "BTARD"


@dataclass(frozen=True)
class Swarm:
    """A finished swarm, by its coordinator's files."""

    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the swarm's folder."""
        return self.folder.parent.name if self.folder.name == COORDINATOR else self.folder.name

    @property
    def defence(self) -> str:
        """The mean, or BTARD with the tau that is not the usual one."""
        tau = self.config["protocol"]["tau"]
        if tau == float("inf"):
            return MEAN
        return BTARD if tau == 0.125 else f"{BTARD}, tau {tau}"

    @property
    def attack(self) -> str:
        """The attack, as the paper calls it."""
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
    def bans(self) -> list[int]:
        """The steps in which attackers were banned, ascending."""
        attackers = self.summary["byzantine"]
        return sorted(ban["step"] for ban in self.summary["bans"] if ban["peer"] in attackers)

    @property
    def honest_removed(self) -> list[int]:
        """The steps in which honest peers were removed, ascending."""
        attackers = self.summary["byzantine"]
        return sorted(ban["step"] for ban in self.summary["bans"] if ban["peer"] not in attackers)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric, where it is known."""
        pairs = [(line["step"], line[key]) for line in self.metrics if line.get(key) is not None]
        return [step for step, _ in pairs], [value for _, value in pairs]

    @property
    def removals(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(step of the run, entry) of the ledger, whose own steps count from where the swarm began."""
        known = {ban["peer"]: ban["step"] for ban in self.summary["bans"]}
        first = next((known[e["peers"][0]] - e["step"] for e in self.ledger if e["peers"]), self.metrics[0]["step"])
        for entry in self.ledger:
            yield first + entry["step"], entry


def read_swarms(folder: Path) -> list[Swarm]:
    """The finished swarms in `folder`, by name. Errors: RunFolderError if there is none."""
    swarms = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        place = entry / COORDINATOR if (entry / COORDINATOR).is_dir() else entry
        summary = read_summary(place) if (place / "config.yaml").exists() else None
        if summary is None:
            continue
        config = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
        ledger = place / "ledger.jsonl"
        lines = ledger.read_text(encoding="utf-8").splitlines() if ledger.exists() else []
        entries = [json.loads(line) for line in lines]
        swarms.append(Swarm(place, config, read_metrics(place), read_timings(place), entries, summary))
    if not swarms:
        raise RunFolderError(f"{folder}: holds no swarm that came to its end; python -m albert.experiments makes some")
    return swarms


def export(swarms: Sequence[Swarm], target: Path) -> None:
    """Copy what a report is made of, without where things lay on this machine."""
    for swarm in swarms:
        folder = target / swarm.name
        folder.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            if (swarm.folder / file).exists() and (swarm.folder / file).resolve() != (folder / file).resolve():
                shutil.copyfile(swarm.folder / file, folder / file)
        public = {key: value for key, value in swarm.config.items() if key not in PRIVATE}
        (folder / "config.yaml").write_text(yaml.safe_dump(public, sort_keys=False), encoding="utf-8")
