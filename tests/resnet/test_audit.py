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
from resnet.training import train
from tests.resnet.trained import ATTACK, config_of, train_killed

WORDS = (*ATTACK, "--steps", "12", "--eval_every", "12")


def files_of(out: Path) -> set[str]:
    return {file.name for file in (out / "evidence").iterdir()}


@pytest.mark.parametrize("mode", ["batched", "per_peer"])
@pytest.mark.parametrize("attack", ["sign_flip", "false_accusation", "label_flip"])
def test_gradients_of_a_run_are_computed_again(
    attack: str, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config_of(*WORDS, "--attack.name", attack, "--mode", mode), tmp_path, progress=False)
    capsys.readouterr()
    assert main([str(tmp_path)]) == 0
    *lines, summary = capsys.readouterr().out.strip().splitlines()
    again = {word: [line for line in lines if word in line] for word in ("gradient recomputed", "states measured")}
    assert all(again.values()) and sum(map(len, again.values())) == len(lines)
    assert all(line.endswith(("gradient recomputed", "again")) for line in lines)
    assert "attested by" in summary
    assert main([str(tmp_path), "--task", ""]) == 0
    *lines, _ = capsys.readouterr().out.strip().splitlines()
    assert all("votes only" in line or "replayed from the signed messages" in line for line in lines)


def test_the_attested_parameters_are_those_of_the_last_checkpoint(tmp_path: Path) -> None:
    train(config_of(*WORDS), tmp_path, progress=False)
    newest = sorted((tmp_path / "checkpoints").glob("step-*.safetensors"))[-1]
    assert Attestation.read(tmp_path).params == tensor_digest(load_file(newest)["parameters"], "parameters")


def test_an_interrupted_run_is_audited_as_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(*WORDS)
    train(config, tmp_path / "a", progress=False)
    steps = [int(file.name[5:13]) for file in (tmp_path / "a/evidence").glob("step-????????.json")]
    train_killed(config, tmp_path / "b", (min(steps), max(steps) + 1), monkeypatch)
    # Every life signs for itself: all else is the same.
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert (tmp_path / "a/ledger.jsonl").read_bytes() == (tmp_path / "b/ledger.jsonl").read_bytes()
    reports = [audit(tmp_path / name, task_of(tmp_path / name)) for name in ("a", "b")]
    assert reports[0] == reports[1] and "parameters" in reports[0].summary


def test_altered_parameters_reproduce_nobodys_gradient(tmp_path: Path) -> None:
    train(config_of(*WORDS), tmp_path, progress=False)
    file = sorted((tmp_path / "evidence").glob("step-*.safetensors"))[0]
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
    file = sorted((tmp_path / "evidence").glob("step-*.safetensors"))[0]
    tensors = load_file(file)
    save_file({**tensors, "params": tensors["params"] + 1}, file)
    with pytest.raises(AuditError, match=f"{file.name}: its content does not match"):
        audit(tmp_path)


def test_a_task_that_cannot_be_made_leaves_the_votes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config_of(*WORDS), tmp_path, progress=False)
    config = (tmp_path / "config.yaml").read_text()
    for text, reason in ((config.replace("name: digits", "name: fingers"), "fingers"), ("\x00\n", "")):
        (tmp_path / "config.yaml").write_text(text)
        capsys.readouterr()
        assert main([str(tmp_path)]) == 0
        said = capsys.readouterr()
        assert said.err.startswith("gradients are not recomputed: ") and said.err.count("\n") == 1
        assert reason in said.err and "votes only" in said.out
