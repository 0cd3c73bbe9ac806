"""What a swarm has trained: `from_pretrained` loads it, it is as good as the coordinator says, and it is signed."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AlbertForMaskedLM, AutoTokenizer

import btard
from albert.evaluate import main as evaluate
from albert.export import main as export
from albert.measure import validation_batches
from albert.task import make
from btard.export.__main__ import main as export_named
from btard.swarm.checkpoint import load_start
from btard.swarm.deadlines import Deadlines
from btard.training.vector import flatten
from tests.albert.trainers import tiny
from tests.albert.watched import Watched

STEPS = 5


@dataclass
class Trained:
    """A swarm that has come to its end, and the model that was exported from the coordinator's folder."""

    swarm: Watched
    summary: dict[str, Any]
    data: Path
    model: Path


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    out = tmp_path_factory.mktemp("export")
    # Numbered peers have seeded keys; and deadlines that a slow machine keeps, too, leave nobody out of a step.
    patient = Deadlines(compute=120, phase=60, message=0.2, uplink=8, give_up=60, gather=120)
    swarm = Watched(tiny(data, run_id="export", steps=STEPS, checkpoint_every=3, peer=0, deadlines=patient), out)
    summary = swarm.run()
    assert export([str(out / "coordinator"), "--out", str(out / "model")]) == 0
    return Trained(swarm, summary, data, out / "model")


def test_the_coordinator_keeps_the_state_after_the_last_step(trained: Trained) -> None:
    kept = sorted((trained.swarm.out / "coordinator/checkpoints").glob("*.safetensors"))
    assert [file.name for file in kept] == ["step-00000003.safetensors", "step-00000005.safetensors"]
    peer = trained.swarm.trainers.trainers[0]
    step, state = load_start(kept[-1], peer.optimizer.state())
    assert step == STEPS and all(torch.equal(x, state[name]) for name, x in peer.optimizer.state().items())
    assert trained.summary["heads"] == [peer.peer.ledger.head.hex()]


def test_from_pretrained_loads_it_and_finds_the_coordinators_loss_of_masked_words(trained: Trained) -> None:
    model, info = AlbertForMaskedLM.from_pretrained(trained.model, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    losses = []
    with torch.no_grad():
        for inputs in validation_batches(trained.data):
            del inputs["sentence_order_label"]
            losses.append(float(model(**inputs).loss))
    assert sum(losses) / len(losses) == pytest.approx(trained.summary["masked_word_loss"], rel=1e-6)
    assert trained.summary["masked_word_loss"] < trained.summary["validation_loss"]
    assert len(AutoTokenizer.from_pretrained(trained.model)) == model.config.vocab_size


def test_btard_simulate_trains_it_to_the_same_bits(trained: Trained) -> None:
    """Task and optimizer are those of the swarm, as they are."""
    config = trained.swarm.config
    task, optimizer = make(config)
    settings = asdict(config.protocol_config())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run = btard.simulate(task, optimizer=optimizer, steps=STEPS, mode="per_peer", **settings)
    finally:
        torch.set_num_threads(threads)
    peer = trained.swarm.trainers.trainers[0]
    assert torch.equal(flatten(task.model), peer.optimizer.params)
    assert run.lrs == [peer.optimizer.lr(step) for step in range(STEPS)] and not run.bans


def test_the_command_measures_what_the_coordinator_did(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate([str(trained.model), "--data", str(trained.data)]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured == pytest.approx({name: trained.summary[name] for name in measured}, rel=1e-6)
    assert {"masked_word_loss", "masked_word_accuracy"} <= measured.keys()


def test_the_card_says_who_signed_and_the_signatures_are_checked(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (trained.model / "README.md").read_text()
    peer = trained.swarm.trainers.trainers[0]
    assert peer.task.corpus.digest in text and "4 of the 4 peers that were left: 0, 1, 2, 3" in text
    assert f"masked word loss {trained.summary['masked_word_loss']:.4f}" in text
    assert export_named(["--check", str(trained.model)]) == 0
    assert "ok: signed by 4 of the 4" in capsys.readouterr().out

    # A peer's own folder gives the same tensors under the same signatures.
    assert export_named([str(peer.out), "--out", str(tmp_path / "named")]) == 0
    assert export_named(["--check", str(tmp_path / "named")]) == 0
    assert capsys.readouterr().out.count("4 of the 4 peers") == 2

    # One number of the model is another one than was signed.
    changed = tmp_path / "changed"
    shutil.copytree(trained.model, changed)
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    with pytest.raises(SystemExit, match="2"):
        export_named(["--check", str(changed)])
    assert "its parameters are not what the peers signed" in capsys.readouterr().err

    # Only one of four has signed.
    statement = changed / "proof/attestation.json"
    shutil.copyfile(trained.model / "model.safetensors", changed / "model.safetensors")
    from btard.audit.attestation import Attestation

    signed = Attestation.read(changed / "proof")
    statement.unlink()
    replace(signed, signatures={2: signed.signatures[2], 1: signed.signatures[2]}).write(changed / "proof")
    assert export_named(["--check", str(changed)]) == 1
    assert "NOT ENOUGH: signed by 1 of the 4 peers that were left: 2" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["folder", "data", "out"])
def test_what_cannot_be_exported_is_one_line(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    folder, out = trained.swarm.out / "coordinator", tmp_path / "model"
    words = [str(tmp_path if what == "folder" else folder), "--out", str(trained.model if what == "out" else out)]
    with pytest.raises(SystemExit, match="2"):
        export([*words, "--data", str(tmp_path / "nowhere" if what == "data" else trained.data)])
    said = capsys.readouterr().err
    expected = {
        "folder": "expected a run folder, found no config.yaml in it",
        "data": "expected a folder of prepared data, found none",
        "out": "expected a folder that is new or empty",
    }
    assert expected[what] in said and said.startswith("error: ") and said.count("\n") == 1
    assert not out.exists()
