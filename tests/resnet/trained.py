"""Small runs on the embedded digits for the tests, whole or killed in the middle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from btard.harness.settings import parse_command_line
from resnet.config import Config
from resnet.training import Training, train

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs/resnet/digits.yaml")
SMALL = ["--peers=6", "--steps=10", "--eval_every=5", "--checkpoint_every=4", "--test_samples=50"]
SMALL += ["--model.width=2", "--batch_size=4"]
ATTACK = ["--attack.name", "sign_flip", "--attack.start", "2", "--byzantine", "2"]


def config_of(*words: str) -> Config:
    return parse_command_line(Config, [DIGITS, "--out", "unused", *SMALL, *words], "test")[0]


def files_of(out: Path) -> dict[str, Any]:
    """What two equal runs have in common: all but timings."""
    newest = sorted((out / "checkpoints").glob("*.safetensors"))[-1]
    return {
        "metrics": (out / "metrics.jsonl").read_text(),
        "ledger": (out / "ledger.jsonl").read_text(),
        "tensors": {name: x.numpy().tobytes() for name, x in load_file(newest).items()},
    }


class Killed(Exception):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the training die in the middle of `step`, after its gradient and before its metrics."""
    honest = Training.step

    def step_or_die(self: Training, now: int) -> Any:
        result = honest(self, now)
        if now == step:
            raise Killed
        return result

    monkeypatch.setattr(Training, "step", step_or_die)


def train_killed(config: Config, out: Path, steps: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Train into `out`, killed in the middle of each of `steps` and begun again."""
    for step in steps:
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with pytest.raises(Killed):
                train(config, out, progress=False)
    train(config, out, progress=False)
