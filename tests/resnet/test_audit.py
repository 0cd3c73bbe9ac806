"""A training run leaves a folder that stands the audit, interrupted or not, and gradients can be computed again."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from btard.audit import AuditError, audit
from btard.audit.__main__ import main
from btard.audit.attestation import Attestation
from btard.audit.proof import Proof
from btard.audit.settings import read_settings
from btard.protocol.hashing import tensor_digest
from btard.protocol.identity import Identity
from resnet.audit import task_of
from resnet.train import train
from tests.resnet.test_train import ATTACK, Killed, config_of, kill_at

WORDS = (*ATTACK, "--steps", "12", "--eval_every", "12")


def evidence_of(out: Path) -> dict[str, bytes]:
    files = [*(out / "evidence").iterdir(), *(out / name for name in ("attestation.json", "ledger.jsonl"))]
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("mode", ["batched", "per_peer"])
@pytest.mark.parametrize("attack", ["sign_flip", "false_accusation", "label_flip"])
def test_gradients_of_a_run_are_computed_again(
    attack: str, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config_of(*WORDS, "--attack.name", attack, "--mode", mode), tmp_path, progress=False)
    capsys.readouterr()
    assert main([str(tmp_path), "--task", "resnet.audit:task_of"]) == 0
    *bans, summary = capsys.readouterr().out.strip().splitlines()
    assert bans and all("gradient computed again" in line for line in bans)
    assert "attested by" in summary
    assert main([str(tmp_path)]) == 0
    *bans, _ = capsys.readouterr().out.strip().splitlines()
    assert all("votes only" in line for line in bans)


def test_the_attested_parameters_are_those_of_the_last_checkpoint(tmp_path: Path) -> None:
    train(config_of(*WORDS), tmp_path, progress=False)
    newest = sorted((tmp_path / "checkpoints").glob("*.safetensors"))[-1]
    assert Attestation.read(tmp_path).params == tensor_digest(load_file(newest)["params"], "parameters")


def test_an_interrupted_run_leaves_the_same_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(*WORDS)
    train(config, tmp_path / "a", progress=False)
    steps = [int(file.name[5:13]) for file in (tmp_path / "a/evidence").glob("step-????????.json")]
    for step in (min(steps), max(steps) + 1):
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with pytest.raises(Killed):
                train(config, tmp_path / "b", progress=False)
    train(config, tmp_path / "b", progress=False)
    assert evidence_of(tmp_path / "a") == evidence_of(tmp_path / "b")
    audit(tmp_path / "b", task_of(tmp_path / "b"))


def test_altered_parameters_reproduce_nobodys_gradient(tmp_path: Path) -> None:
    train(config_of(*WORDS), tmp_path, progress=False)
    file = sorted((tmp_path / "evidence").glob("*.safetensors"))[0]
    step = int(file.stem[5:])
    task = task_of(tmp_path)
    proof = Proof.read(tmp_path / "evidence", step, task.d)
    assert proof.params is not None
    proof.params[0] += 1e-3
    config, _, _ = read_settings(tmp_path)
    proof.write(tmp_path / "evidence", 0, Identity.from_seed(config.run_id, 0))
    audit(tmp_path)  # without the task nobody can tell
    with pytest.raises(AuditError, match="give nobody's committed gradient"):
        audit(tmp_path, task)


def test_a_finished_run_needs_its_attestation(tmp_path: Path) -> None:
    train(config_of(*WORDS), tmp_path, progress=False)
    (tmp_path / "attestation.json").unlink()
    with pytest.raises(AuditError, match=r"attestation\.json: missing"):
        audit(tmp_path)


def test_a_damaged_file_of_tensors_is_refused(tmp_path: Path) -> None:
    train(config_of(*WORDS), tmp_path, progress=False)
    file = sorted((tmp_path / "evidence").glob("*.safetensors"))[0]
    tensors = load_file(file)
    save_file({**tensors, "params": tensors["params"] + 1}, file)
    with pytest.raises(AuditError, match=f"{file.name}: its content does not match"):
        audit(tmp_path)
