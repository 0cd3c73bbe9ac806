"""A training run leaves a folder that stands the audit, interrupted or not, and gradients can be computed again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from btard.audit import AuditError, audit
from btard.audit.__main__ import main
from btard.audit.attestation import Attestation
from btard.audit.proof import Proof
from btard.audit.settings import read_settings
from btard.harness.recorded import read_recorded
from btard.harness.settings import config_text
from btard.protocol.hashing import tensor_digest
from btard.protocol.identity import Identity
from resnet.audit import task_of
from resnet.config import Config, ModelConfig
from resnet.training import train
from tests.resnet.trained import ATTACK, config_of, train_killed

WORDS = (*ATTACK, "--steps", "12", "--eval_every", "12")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a finished run leaves. Not to be changed."""
    out = tmp_path_factory.mktemp("audit") / "run"
    train(config_of(*WORDS), out, progress=False)
    return out


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


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


def test_the_attested_parameters_are_those_of_the_last_checkpoint(trained: Path) -> None:
    newest = sorted((trained / "checkpoints").glob("step-*.safetensors"))[-1]
    assert Attestation.read(trained).params == tensor_digest(load_file(newest)["parameters"], "parameters")


def test_an_interrupted_run_is_audited_as_the_same_run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [int(file.name[5:13]) for file in (trained / "evidence").glob("step-????????.json")]
    train_killed(config_of(*WORDS), tmp_path, (min(steps), max(steps) + 1), monkeypatch)
    # Every life signs for itself: all else is the same.
    assert files_of(trained) == files_of(tmp_path)
    assert (trained / "ledger.jsonl").read_bytes() == (tmp_path / "ledger.jsonl").read_bytes()
    reports = [audit(out, task_of(out)) for out in (trained, tmp_path)]
    assert reports[0] == reports[1] and "parameters" in reports[0].summary


def test_a_network_of_another_size_than_the_runs_is_not_made(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of config.yaml says how wide it is, and so how much memory it takes."""
    config = replace(read_recorded(Config, run), model=ModelConfig(width=10**5))
    (run / "config.yaml").write_text(config_text(config))
    monkeypatch.setattr("resnet.audit.make_model", lambda *_: pytest.fail("it is made"))
    with pytest.raises(ValueError, match=r"it has \d{14} parameters, the run \d+$"):
        task_of(run)


def test_altered_parameters_reproduce_nobodys_gradient(run: Path) -> None:
    file = sorted((run / "evidence").glob("step-*.safetensors"))[0]
    step = int(file.stem[5:])
    task = task_of(run)
    proof = Proof.read(run / "evidence", step, task.d)
    assert proof.params is not None
    proof.params[0] += 1e-3
    config, _, _ = read_settings(run)
    proof.write(run / "evidence", 0, Identity.from_seed(config.run_id, 0))
    audit(run)  # without the task nobody can tell
    with pytest.raises(AuditError, match="give nobody's committed gradient"):
        audit(run, task)


def test_a_finished_run_needs_its_attestation(run: Path) -> None:
    (run / "attestation.json").unlink()
    with pytest.raises(AuditError, match=r"attestation\.json: missing"):
        audit(run)


def test_a_damaged_file_of_tensors_is_refused(run: Path) -> None:
    file = sorted((run / "evidence").glob("step-*.safetensors"))[0]
    tensors = load_file(file)
    save_file({**tensors, "params": tensors["params"] + 1}, file)
    with pytest.raises(AuditError, match=f"{file.name}: its content does not match"):
        audit(run)


def test_a_task_that_cannot_be_made_leaves_the_votes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = (run / "config.yaml").read_text()
    for text, reason in ((config.replace("name: digits", "name: fingers"), "fingers"), ("\x00\n", "")):
        (run / "config.yaml").write_text(text)
        capsys.readouterr()
        assert main([str(run)]) == 0
        said = capsys.readouterr()
        assert said.err.startswith("gradients are not recomputed: ") and said.err.count("\n") == 1
        assert reason in said.err and "votes only" in said.out
