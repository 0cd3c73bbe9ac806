"""The classification task is a `btard.TorchTask`: `btard.simulate` makes the run of `resnet.train` of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import btard
from btard.audit.files import LEDGER
from btard.export.__main__ import main as export
from btard.harness.run_folder import RunFolderError
from btard.protocol.effects import Compute, Purpose
from btard.training.vector import flatten
from resnet.cohort import make_model, make_task
from resnet.config import Config
from resnet.data import load_dataset
from resnet.model import evaluate, resnet18
from resnet.optimizer import cosine, sgd
from resnet.sampling import TrainingData
from resnet.task import ClassificationTask
from resnet.training import Training, train
from tests.resnet.trained import ATTACK, config_of


def simulated(config: Config, out: Path) -> tuple[btard.Run, torch.nn.Module]:
    """What `btard.simulate` makes of the same settings, and the model with which it ends."""
    data = load_dataset("digits")
    model = make_model(config, data)
    protocol = asdict(config.protocol_config())
    run = btard.simulate(
        make_task(config, data, model),
        optimizer=sgd(config.optimizer),
        scheduler=cosine(config.schedule_steps),
        steps=config.steps,
        peers=protocol.pop("peers"),
        byzantine=protocol.pop("byzantine"),
        attack=config.attack.name,
        attack_options={"start": config.attack.start},
        seed=config.seed,
        out=out,
        **protocol,
    )
    return run, model


@pytest.mark.parametrize("attack", ["sign_flip", "label_flip"])
def test_btard_simulate_makes_the_same_run_to_the_bit(attack: str, tmp_path: Path) -> None:
    config = config_of(*ATTACK, "--attack.name", attack, "--protocol.heal", "auto")
    summary = train(config, tmp_path / "ours", progress=False, events=False)
    run, model = simulated(config, tmp_path / "theirs")
    assert summary is not None and summary["bans"], "choose a run in which somebody is banned"
    assert [(ban.peer, ban.step) for ban in run.bans] == [(ban["peer"], ban["step"]) for ban in summary["bans"]]
    trained = load_file(tmp_path / "ours/checkpoints/step-00000010.safetensors")["parameters"]
    assert torch.equal(flatten(model), trained)
    assert (tmp_path / "theirs" / LEDGER).read_text() == (tmp_path / "ours" / LEDGER).read_text()
    tests = load_dataset("digits").test_tensors()
    assert evaluate(model, *tests)[0] == summary["test_accuracy"], "with the statistics of the same peer"
    # At home: whoever loads it has the same network.
    assert export([str(tmp_path / "theirs"), "--out", str(tmp_path / "home")]) == 0
    fresh = resnet18(config.model.width, channels=1, seed=1)
    fresh.load_state_dict(load_file(tmp_path / "home/model.safetensors"))
    assert evaluate(fresh, *tests)[0] == summary["test_accuracy"]


def test_a_gradient_alone_is_that_of_the_public_task_to_rounding() -> None:
    """`TorchTask` computes it by the model and the loss that it was given, whoever computes the cohort's."""
    model = resnet18(width=2, channels=1)
    task = ClassificationTask(model, TrainingData(load_dataset("digits")), peers=1, batch_size=4, mode="per_peer")
    for flip in (False, True):
        [mine], [theirs] = torch.empty(1, task.d), torch.empty(1, task.d)
        task.gradients(flatten(model), [Compute(0, 0, bytes(32), flip_labels=flip)], mine[None])
        task.load(flatten(model))
        task.compute(bytes(32), theirs, task.initial, poisoned=flip)
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-6)


def test_a_peer_beyond_those_the_task_was_made_for_is_named() -> None:
    model = resnet18(width=2, channels=1)
    task = ClassificationTask(model, TrainingData(load_dataset("digits")), peers=2, batch_size=2, mode="per_peer")
    out = torch.empty(1, task.d)
    with pytest.raises(ValueError, match="peer 2 has no running statistics, the task was made for 2 peers"):
        task.gradients(flatten(model), [Compute(0, 2, bytes(32))], out)
    task.gradients(flatten(model), [Compute(0, 2, bytes(32), Purpose.VALIDATE)], out)  # recomputing needs none


def test_a_checkpoint_of_another_release_is_one_line(tmp_path: Path) -> None:
    training = Training(config_of(), load_dataset("digits"), tmp_path)
    old = {"parameters": training.optimizer.params, **training.task.local_state()}
    with pytest.raises(RunFolderError, match="no tensor 'optimizer begun': another release wrote it"):
        training.load(old, {})
