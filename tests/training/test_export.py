"""`python -m btard.export` of own models: a fresh model takes the whole state, and computes the same."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import btard
from btard.checkpoints import Checkpoints, tensors_digest
from btard.export.__main__ import main as export
from btard.protocol.hashing import PROTOCOL_VERSION
from btard.training.layout import KEPT_FILE, write_layout
from tests.training import model as mlp


class Tied(nn.Module):
    """A frozen convolution, BatchNorm, a weight that two layers share, and buffers of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.norm = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3)
        self.fixed.requires_grad_(False)
        self.conv = nn.Conv2d(3, 4, 2)
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.register_buffer("scale", torch.tensor([2, 3]))
        self.register_buffer("cache", torch.zeros(5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.one(self.conv(self.norm(self.fixed(x))).mean((2, 3)))) * self.scale[1]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def test_a_frozen_layer_batchnorm_and_shared_weights_come_home(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 1, 6, 6) + 1, torch.randint(4, (32,))
    model = Tied()
    task = btard.TorchTask(model, loss, torch.utils.data.TensorDataset(x, y), 8)
    btard.simulate(task, optimizer=torch.optim.Adam, peers=4, steps=5, out=tmp_path / "run")
    assert export([str(tmp_path / "run"), "--out", str(tmp_path / "home")]) == 0
    fresh = Tied()
    fresh.load_state_dict(load_file(tmp_path / "home/model.safetensors"))
    assert int(fresh.norm.num_batches_tracked) == int(model.norm.num_batches_tracked) >= 4
    assert not torch.equal(fresh.norm.running_mean, torch.zeros(3)), "choose data that move it"
    assert torch.equal(fresh.eval()(x), model.eval()(x))
    assert "fixed.weight" in (tmp_path / "home/README.md").read_text()
    assert export(["--check", str(tmp_path / "home")]) == 0


def test_a_run_that_was_killed_is_exported_as_its_newest_checkpoint(tmp_path: Path) -> None:
    def killed(run: btard.Run) -> None:
        if run.bans:
            raise KeyboardInterrupt

    def simulated(out: Path, steps: int, on_step: Callable[[btard.Run], None] | None = None) -> Tied:
        torch.manual_seed(0)
        data = torch.utils.data.TensorDataset(torch.randn(32, 1, 6, 6) + 1, torch.randint(4, (32,)))
        model = Tied()
        task = btard.TorchTask(model, loss, data, 8)
        few: dict[str, Any] = {"peers": 4, "byzantine": 1, "checkpoint_every": 5, "steps": steps}
        attack: dict[str, Any] = {"attack": "sign_flip", "attack_options": {"start": 4}}
        btard.simulate(task, optimizer=torch.optim.Adam, out=out, on_step=on_step, **few, **attack)
        return model

    run, whole = tmp_path / "run", tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        simulated(run, 9, killed)
    assert "wrong_gradient" in (run / "ledger.jsonl").read_text(), "choose a run with a ban after the checkpoint"
    assert export([str(run), "--out", str(tmp_path / "home")]) == 0
    card = (tmp_path / "home/README.md").read_text()
    assert "| trained for | 5 steps, of a run that had not finished |" in card
    assert "| removed | nobody |" in card and "| signed by | nobody |" in card
    five, found = simulated(tmp_path / "five", 5), Tied()
    found.load_state_dict(load_file(tmp_path / "home/model.safetensors"))
    assert all(torch.equal(x, five.state_dict()[name]) for name, x in found.state_dict().items())
    # It goes on as if nothing had been exported, and is exported again.
    simulated(run, 9)
    simulated(whole, 9)
    assert {f.name for f in run.iterdir()} == {f.name for f in whole.iterdir()}
    assert (run / "summary.json").read_bytes() == (whole / "summary.json").read_bytes()
    assert export([str(run), "--out", str(tmp_path / "at the end")]) == 0
    assert "| trained for | 9 steps |" in (tmp_path / "at the end/README.md").read_text()


@pytest.mark.parametrize("begun", ["config.yaml", "run.json"])
@pytest.mark.parametrize("name", ["rank-x", "rank-\u00b2", "step-x.safetensors", "deep", "state", "pipe", "endless"])
def test_what_is_no_checkpoint_is_passed_over(
    name: str, begun: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run/checkpoints"
    folder.mkdir(parents=True)
    (tmp_path / "run" / begun).write_text("{}\n")
    file, x = folder / "step-00000001.safetensors", {"parameters": torch.zeros(3)}
    if name in ("deep", "state"):
        said = {"version": PROTOCOL_VERSION, "step": 1, "state": "[" * 10**5}
        whole = json.dumps(said | {"digest": tensors_digest(1, said["state"], x)})
        save_file(x, file, {"btard": "[" * 10**5 if name == "deep" else whole})
    elif name == "pipe":
        os.mkfifo(file)
    elif name == "endless":
        said = {"version": PROTOCOL_VERSION, "step": 1, "digest": "", "confirmed_by": [math.inf], "notes": {}}
        save_file(x, file, {"btard.swarm": json.dumps(said | {"content": tensors_digest(1, "", x)})})
    else:
        (folder / name).mkdir() if "rank" in name else save_file(x, folder / name)
    with pytest.raises(SystemExit) as stopped:
        export([str(tmp_path / "run"), "--out", str(tmp_path / "home")])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and "expected a checkpoint in checkpoints/, found none that is intact" in line


def test_a_peers_folder_has_its_own_buffers_and_the_coordinators_those_of_the_start(tmp_path: Path) -> None:
    """Folders as those of a swarm: the layout is written at the start, and checkpoints have what training moves."""
    task = mlp.task()
    params = torch.full((task.d,), 0.5)
    before, moved = task.kept()["kept/1.running_mean"], torch.full((8,), 7.0)
    assert torch.equal(before, torch.zeros(8))
    for name, more in {"peer": {"local/buffers/2/1.running_mean": moved}, "coordinator": {}}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text("run_id: three places\n")
        write_layout(folder, task.layout(), task.agreed(), task.kept())
        assert (folder / KEPT_FILE).is_file()
        Checkpoints(folder / "checkpoints").save_checkpoint(3, {"training/parameters": params, **more}, {})
        assert export([str(folder), "--out", str(tmp_path / f"{name} home")]) == 0
        fresh = mlp.network()
        fresh.load_state_dict(load_file(tmp_path / f"{name} home/model.safetensors"))
        norm = fresh[1]
        assert isinstance(norm, nn.BatchNorm1d) and torch.equal(norm.running_mean, moved if more else before)
        assert torch.equal(fresh[0].weight, mlp.network()[0].weight), "the frozen layer"
        assert torch.equal(fresh[4].weight, torch.full((2, 8), 0.5))
