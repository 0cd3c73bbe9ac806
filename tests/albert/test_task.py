"""The losses by which states of ALBERT are compared."""

from __future__ import annotations

import math
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AlbertConfig, AlbertForPreTraining

from albert.audit import task_of
from albert.config import ModelConfig
from albert.data.batches import batch
from albert.data.corpus import Corpus
from albert.model import make_model
from albert.task import MEASURED, AlbertTask
from btard.audit.settings import write_settings
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.identity import Identity, Roster
from btard.task import Measurable
from btard.training.randomness import seeded
from btard.training.vector import flatten

SEED = bytes(range(32))


@pytest.fixture(scope="module")
def corpus(data: Path) -> Corpus:
    return Corpus(str(data))


def make(corpus: Corpus, per_device: int = 16, dropout: float = 0.0, **more: Any) -> tuple[AlbertTask, torch.Tensor]:
    """A task, and parameters of which a step has been made: the first ones say the same of every word."""
    model = ModelConfig(layers=1, hidden=16, heads=2, intermediate=16, embedding=8, dropout=dropout)
    task = AlbertTask(make_model(model, corpus.vocab_size, corpus.sequence_length, 0), corpus, 8, per_device, **more)
    params = flatten(task.module)
    params += 0.05 * torch.randn(task.d, generator=torch.Generator().manual_seed(1))
    return task, params


def test_a_model_that_is_made_while_a_gradient_is_computed_disturbs_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's generator belongs to all threads. Peers that share a process began with different parameters."""
    begun, cpu, made = threading.Event(), torch.device("cpu"), list[torch.Tensor]()

    def initial(settings: AlbertConfig) -> AlbertForPreTraining:
        begun.set()
        return AlbertForPreTraining(settings)

    def make_one() -> torch.Tensor:
        return flatten(make_model(ModelConfig(layers=1, hidden=16, heads=2, intermediate=16, embedding=8), 100, 8, 0))

    alone = make_one()
    monkeypatch.setattr("albert.model.AlbertForPreTraining", initial)
    maker = threading.Thread(target=lambda: made.append(make_one()))
    with seeded(cpu, "gradient"):
        expected = torch.rand(2)
    with seeded(cpu, "gradient"):
        first = torch.rand(1)
        maker.start()
        begun.wait(0.2)
        drawn = torch.cat([first, torch.rand(1)])
    maker.join()
    assert torch.equal(drawn, expected)
    assert torch.equal(made[0], alone)


def test_each_loss_is_that_of_its_sequence_alone(corpus: Corpus) -> None:
    task, params = make(corpus)
    losses = task.public_losses(params, SEED)
    assert isinstance(task, Measurable)
    assert (losses.shape, losses.dtype, losses.device.type) == ((MEASURED,), torch.float64, "cpu")
    assert losses.std() > 0.01
    ones = [[batch(corpus, SEED, MEASURED, start=i, stop=i + 1)] for i in range(MEASURED)]
    alone = [task.evaluate(params, one)["validation_loss"] for one in ones]
    torch.testing.assert_close(losses, torch.tensor(alone, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_only_parameters_and_seed_count(corpus: Corpus) -> None:
    task, params = make(corpus, dropout=0.3)
    losses, drawn = task.public_losses(params, SEED), torch.random.get_rng_state()
    gradient = torch.empty(1, task.d)
    task.gradients(0 * params, [Compute(0, 1, bytes(32))], gradient)
    trained = task.loss
    assert torch.equal(task.public_losses(params, SEED), losses) and torch.equal(torch.random.get_rng_state(), drawn)
    assert task.loss == trained and not math.isnan(trained)
    torch.testing.assert_close(make(corpus, per_device=24, dropout=0.3)[0].public_losses(params, SEED), losses)
    assert not torch.equal(task.public_losses(params, bytes(32)), losses)
    again = torch.empty(1, task.d)
    task.gradients(0 * params, [Compute(0, 1, bytes(32))], again)
    assert torch.equal(again, gradient), "dropout is on again"


def test_a_worse_state_is_told_from_a_better_one(corpus: Corpus) -> None:
    task, params = make(corpus)
    row = torch.empty(1, task.d)
    worse = params.clone()
    for step in range(5):
        task.gradients(worse, [Compute(step, 0, bytes([step] * 32))], row)
        worse += 0.5 * row[0]
    gaps = task.public_losses(worse, SEED) - task.public_losses(params, SEED)
    assert gaps.mean() > 3 * gaps.std() / math.sqrt(MEASURED)


def test_the_task_of_a_strangers_folder_imports_no_attack(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_attack.py").write_text("raise SystemExit('it was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    small = "{layers: 1, hidden: 16, heads: 2, intermediate: 16, embedding: 8}"
    settings = f"peers: 3\nbyzantine: 1\ndevice: cpu\nmodel: {small}\ndata: {{path: '{data}'}}\n"
    (tmp_path / "config.yaml").write_text(f"{settings}attack: {{name: 'hostile_attack:X', start: 0}}\n")
    d, keys = make(Corpus(str(data)))[0].d, Roster(tuple(Identity.from_seed(peer).public_key for peer in range(3)))
    write_settings(tmp_path, ProtocolConfig(peers=3), d, keys)
    assert task_of(tmp_path).d == d
    assert "hostile_attack" not in sys.modules
    monkeypatch.setattr("albert.task.make_model", lambda *_: pytest.fail("a model of any size is made"))
    write_settings(tmp_path, ProtocolConfig(peers=3), 53, keys)
    with pytest.raises(ValueError, match=f"it has {d} parameters, the run 53"):
        task_of(tmp_path)


@pytest.mark.parametrize("scale", [2.0, 2.0**126])
def test_a_gradient_that_overflows_is_computed_with_a_smaller_scale(corpus: Corpus, scale: float) -> None:
    requests, found = [Compute(0, 1, SEED)], []
    given: tuple[dict[str, Any], ...] = ({}, {"half": True, "loss_scale": scale})
    for more in given:
        task, params = make(corpus, dropout=0.1, **more)
        found.append(torch.empty(1, task.d))
        task.gradients(params, requests, found[-1])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
