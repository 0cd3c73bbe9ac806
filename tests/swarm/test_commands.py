"""`python -m btard.swarm`: a swarm of a task of one's own, and what is said where the command line is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler

import btard
from btard.harness.typed_yaml import ConfigError
from btard.swarm.commands import main
from btard.swarm.config import SwarmConfig
from btard.swarm.task import TaskSource, load_task, ready
from tests.swarm import quadratic

TASK = "tests.swarm.quadratic:make"
SETTINGS = """
peers: 4
byzantine: 1
steps: 8
noise: 0.01
checkpoint_every: 3
attack: {name: sign_flip, start: 2, options: {scale: 100.0}}
deadlines: {compute: 20, phase: 5, message: 0.3, uplink: 1, give_up: 1, gather: 60}
"""


@pytest.mark.timeout(240)
def test_a_swarm_trains_a_task_of_ones_own(tmp_path: Path) -> None:
    file, out = tmp_path / "swarm.yaml", tmp_path / "swarm"
    file.write_text(SETTINGS, encoding="utf-8")
    assert main(["local", str(file), "--task", TASK, "--out", str(out), "--d", "50"]) == 0
    seen = json.loads((out / "coordinator" / "summary.json").read_text())
    (attacker,) = seen["byzantine"]
    assert [ban["peer"] for ban in seen["bans"]] == [attacker] and seen["honest_banned"] == 0
    assert seen["validation_loss"] is None  # the task cannot be evaluated
    ends = [json.loads(end.read_text()) for end in sorted(out.glob("peer-*/summary.json"))]
    assert len(ends) == 3 and len({(end["digest"], end["ledger"]) for end in ends}) == 1
    assert {end["parameters"] for end in ends} == {50}
    assert seen["loss"] < 21  # from 25, by gradients of norm 1


def test_the_annotation_of_a_task_says_which_settings_it_takes() -> None:
    assert load_task(TASK).config is quadratic.Config
    assert load_task("tests.swarm.quadratic:from_any_settings").config is SwarmConfig


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.swarm.quadratic", r"expected module:function"),
        ("tests.swarm.quadratic:missing", r"has no attribute 'missing'; expected module:function"),
        ("tests.swarm.nowhere:make", r"No module named 'tests.swarm.nowhere'"),
        ("tests.swarm.quadratic:from_no_settings", r"takes <class 'int'>; expected a class that extends"),
        ("tests.swarm.quadratic:TASK.make", r"expected module:function"),
    ],
)
def test_what_is_no_task_is_said_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"--task {name}: .*{message}"):
        load_task(name)


def test_a_schedule_that_ends_before_the_steps_is_refused_at_the_start() -> None:
    def make(config: SwarmConfig) -> tuple[btard.TorchTask, torch.optim.Optimizer, lr_scheduler.LRScheduler]:
        model = torch.nn.Linear(3, 1)
        data = [(torch.ones(3), torch.ones(1))] * 8
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        task = btard.TorchTask(model, lambda model, batch: model(batch[0]).square().mean(), data, 4)
        return task, optimizer, lr_scheduler.OneCycleLR(optimizer, 0.1, 8)

    source = TaskSource("mine:make", make, SwarmConfig)
    ready(source, SwarmConfig(peers=3, steps=8))
    with pytest.raises(ConfigError, match="--task mine:make: there is no learning rate for step 9 of steps=10: "):
        ready(source, SwarmConfig(peers=3, steps=10))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "error: expected a command, got ''; usage: python -m btard.swarm coordinator|trainer|local"),
        (["serve"], "error: expected a command, got 'serve'; usage: "),
        (["trainer", "a.yaml"], "error: --task MODULE:FUNCTION is missing; usage: "),
    ],
)
def test_a_wrong_command_line_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1


def test_help_has_the_tasks_own_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "  trainer      one peer of a swarm\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["trainer", "--task", TASK, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: python -m btard.swarm trainer --task {TASK} CONFIG.yaml --out RUN_DIR [--key value")
    assert "--noise 0.1" in said and "--deadlines.gather 600.0" in said
