"""A sweep: its runs are those that `resnet.train` makes one by one, and killing it changes nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from btard.attacks.registry import ATTACKS
from resnet.experiments.grid import Grid, parse_grid
from resnet.experiments.plan import Branch, Segment, make_plan, shard
from resnet.experiments.warmup import branch, extend, fork_point, fork_step, warm_up_of
from resnet.experiments.workers import run_tasks
from resnet.sweep import main, sweep
from resnet.train import train

ROOT = Path(__file__).parents[2]

SETTINGS = {
    "peers": 7,
    "byzantine": 2,
    "steps": 12,
    "eval_every": 4,
    "test_samples": 40,
    "batch_size": 4,
    "threads": 1,
    "checkpoint_every": 3,
    "model.width": 1,
    "data.name": "digits",
    "attack.start": 5,
}
DEFENCES = {"BTARD": {"aggregator.name": "btard"}, "Krum": {"aggregator.name": "krum"}}


def grid_of(attacks: dict, defences: dict | None = None, **entries) -> Grid:
    experiments = entries.pop("experiments", {"all": {}})
    content = {"settings": SETTINGS, "attacks": attacks, "defences": defences or DEFENCES, **entries}
    return parse_grid({**content, "experiments": experiments}, "a test")


def files(folder: Path) -> dict[str, bytes]:
    """Everything that a clock has no part in."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("timings.jsonl", ".lock")
    }


@pytest.mark.parametrize("name", ATTACKS)
def test_a_run_that_leaves_a_warm_up_is_the_run_that_was_trained_alone(name: str, tmp_path: Path) -> None:
    attack = {"attack.name": name} | ({"attack.delay": 3} if name == "delayed_gradient" else {})
    defences = DEFENCES if ATTACKS[name].level == "gradient" else {"BTARD": DEFENCES["BTARD"]}
    for cell in grid_of({name: attack}, defences).cells:
        step = fork_step(cell.config)
        assert step == (2 if name == "delayed_gradient" else 5 - (ATTACKS[name].level == "protocol"))
        warm_up = tmp_path / cell.defence / "warm-up"
        extend(warm_up_of(cell.config), warm_up, step)
        extend(warm_up_of(cell.config), warm_up, step + 4)  # has gone on before it is left
        branch(cell.config, tmp_path / cell.defence / "branch", warm_up, step)
        train(cell.config, tmp_path / cell.defence / "branch", progress=False, events=False)
        train(cell.config, tmp_path / cell.defence / "alone", progress=False, events=False)
        one, other = (files(tmp_path / cell.defence / which) for which in ("branch", "alone"))
        # Of checkpoints that both have: the one at the fork is an extra of the branch.
        common = one.keys() & other.keys()
        assert {path for path in one.keys() ^ other.keys() if "checkpoints" not in path} == set()
        assert "checkpoints/step-00000012.safetensors" in common
        assert {path: one[path] for path in common} == {path: other[path] for path in common}
