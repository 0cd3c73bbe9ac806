"""Finished and unfinished runs as rows of one table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from btard.audit.files import CONFIG
from btard.harness.pieces import check_finished
from btard.harness.run_folder import RunFolderError, read_metrics, read_summary, steps_per_second
from btard.harness.settings import read_config
from btard.harness.typed_yaml import AnyPath, ConfigError
from resnet.config import Config

COLUMNS = (
    "run",
    ">test accuracy",
    ">steps/s",
    ">Byzantine banned",
    ">honest banned",
    ">first ban",
    ">last ban",
    "banned for",
)


@dataclass(frozen=True)
class Run:
    """The contents of a run folder, as far as figures and tables need them."""

    path: AnyPath
    label: str
    config: Config
    metrics: list[dict[str, Any]]
    summary: dict[str, Any] | None
    """None while the run is not finished."""

    @property
    def accuracy(self) -> tuple[list[int], list[float]]:
        """Steps done, and the share of test images classified correctly after them."""
        measured = [line for line in self.metrics if line.get("test_accuracy") is not None]
        return [line["step"] + 1 for line in measured], [float(line["test_accuracy"]) for line in measured]

    @property
    def bans(self) -> list[dict[str, Any]]:
        """The bans of a finished run, in the order of their steps."""
        return sorted((self.summary or {}).get("bans", []), key=lambda ban: (ban["step"], ban["peer"]))

    @property
    def returns(self) -> list[tuple[int, int]]:
        """(step, earlier step to whose beginning it led), for every time that the run went back."""
        return [(line["step"], line["back_to"]) for line in self.metrics if line.get("back_to") is not None]


def read_run(path: Path, label: str | None = None) -> Run:
    """Return the run in folder `path`; `label` names it, by default after its attack and aggregator.

    Raises RunFolderError if there is none, or if a file of it is damaged.
    """
    if not (path / CONFIG).exists():
        raise RunFolderError(f"{path}: expected a run folder, found no config.yaml in it")
    try:
        config = read_config(Config, path / CONFIG)
    except ConfigError as error:
        raise RunFolderError(str(error)) from None
    summary = read_summary(path)
    if summary is not None:
        check_finished(path, summary)
    return Run(path, label or describe(config), config, read_metrics(path), summary)


def describe(config: Config) -> str:
    """Return a short name of what a run does, such as "btard, tau 1, sign flip by 7 of 16"."""
    text: str = config.aggregator.name
    if config.radius is not None:
        text += f", tau {config.radius if isinstance(config.radius, str) else format(config.radius, 'g')}"
    attack = f"{config.attack.name} by {config.byzantine} of {config.peers}" if config.attack.name else "no attack"
    return f"{text}, {attack}".replace("_", " ")


def row(run: Run) -> tuple[str, ...]:
    """Return the cells of a run in the order of `COLUMNS`. Steps are counted from 0; "-" stands for a missing value."""
    summary = run.summary
    if summary is None:
        _, accuracies = run.accuracy
        done = len(run.metrics)
        latest = f"{accuracies[-1]:.1%} " if accuracies else ""
        return (run.label, f"{latest}(step {done} of {run.config.steps})", *"-" * (len(COLUMNS) - 2))
    bans = run.bans
    steps = [ban["step"] for ban in bans]
    kinds = sorted({ban["kind"] for ban in bans})
    accuracy, speed = summary["test_accuracy"], steps_per_second(run.path)
    return (
        run.label,
        f"{accuracy:.1%}" if math.isfinite(accuracy) else "-",
        f"{speed:.2f}" if speed else "-",
        f"{summary['byzantine_banned']} of {run.config.byzantine}",
        str(summary["honest_banned"]),
        str(min(steps)) if steps else "-",
        str(max(steps)) if steps else "-",
        ", ".join(kinds) or "-",
    )


def bans_text(run: Run) -> str:
    """Return one line per ban and per return to an earlier state, in order; "nobody was banned" if there is none."""
    names = {True: "Byzantine", False: "honest", None: "peer"}
    lines = {}
    for ban in run.bans:
        by = f", accused by {ban['accuser']}" if ban.get("accuser") is not None else ""
        who = f"peer {ban['peer']:>2} ({names[ban.get('byzantine')]})"
        lines[ban["step"], ban["peer"]] = f"step {ban['step']:>5}: {who}, {ban['kind']}{by}"
    lines |= {(step, -1): f"step {step:>5}: back to step {to}" for step, to in run.returns}
    return "\n".join(lines[key] for key in sorted(lines)) or "nobody was banned"
