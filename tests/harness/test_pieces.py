"""The pieces of a run folder vouch for each other: what was lost is put back or said, and never passed over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from blake3 import blake3

from btard.audit.vouching import FILES, digests
from btard.harness.pieces import check_finished, lines_of
from btard.harness.run_folder import RunFolder, RunFolderError, read_summary
from btard.harness.settings import exit_with
from resnet.config import Config
from resnet.table import read_run

CONFIG = Config(steps=10)
LINES = ("metrics.jsonl", "ledger.jsonl")


def train(folder: RunFolder, first: int, last: int) -> None:
    """What a training loop does: a ban with its proof in every third step, a checkpoint after every fourth."""
    folder.start(first)
    for step in range(first, last):
        if step % 3 == 0:
            proof = folder.path / f"evidence/step-{step:08d}.json"
            proof.parent.mkdir(exist_ok=True)
            proof.write_text(f"of step {step}")
            folder.log_ledger([json.dumps({"step": step, "kind": "wrong_gradient"})])
        folder.log(step, {"step": step, "test_accuracy": step / 10})
        if (step + 1) % 4 == 0 or step + 1 == last:
            folder.save_checkpoint(step + 1, {"x": torch.ones(2), **folder.vouch(step + 1)}, {})


def test_later_checkpoints_stay_until_the_run_has_come_past_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", CONFIG, events=False)
    train(folder, 0, 8)
    state = folder.path / "evidence/state-00000002"
    state.write_text("for a proof of later")

    def steps() -> list[int]:
        return [int(file.stem[5:]) for file in folder.checkpoints.files()]

    folder.start(0, forget=False)
    assert steps() == [4, 8] and state.exists()
    for step in (1, 2, 3):
        folder.log(step - 1, {})
        folder.save_checkpoint(step, {}, {})
    assert steps() == [2, 3, 4, 8]
    folder.start(3, forget=False)
    assert steps() == [2, 3, 4, 8]
    with pytest.warns(UserWarning, match="has 3 of the 5 steps"):
        folder.start(5, forget=False)  # with the others' state, after an absence
    assert steps() == [2, 3, 8]
    for step in (7, 8):
        folder.save_checkpoint(step, {}, {})
    assert steps() == [7, 8]
    folder.start(0)
    assert steps() == [] and not state.exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("pieces") / "whole"
    folder = RunFolder(path, CONFIG, events=False)
    train(folder, 0, 10)
    folder.write_summary({"test_accuracy": 0.9, "bans": [], FILES: digests(path)})
    return path


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A run that was stopped after step 9, one step after its newest checkpoint; another one is of step 4."""
    folder = RunFolder(tmp_path / "run", CONFIG, events=False)
    train(folder, 0, 8)
    folder.log(8, {"test_accuracy": 0.8})
    folder.close()
    return folder.path


def contents(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in LINES}


def go_on(path: Path) -> None:
    folder = RunFolder(path, CONFIG, events=False)
    loaded = folder.load_checkpoint()
    assert loaded is not None and loaded[1].keys() == {"x"}
    train(folder, loaded[0], 10)
    folder.close()


def without(name: str) -> Callable[[Path], object]:
    return lambda path: (path / name).unlink()


def cut(name: str, size: int) -> Callable[[Path], object]:
    def act(path: Path) -> None:
        text = (path / name).read_bytes()
        (path / name).write_bytes(text[:size])

    return act


def older(path: Path) -> None:
    """The files of the last backup, and the checkpoints of today."""
    for name in LINES:
        lines = (path / name).read_bytes().splitlines(keepends=True)
        (path / name).write_bytes(b"".join(lines[:2]))


LOST: dict[str, Callable[[Path], object]] = {
    "no ledger": without("ledger.jsonl"),
    "no metrics": without("metrics.jsonl"),
    "an empty ledger": cut("ledger.jsonl", 0),
    "a ledger cut in a line": cut("ledger.jsonl", 70),
    "metrics cut in a line": cut("metrics.jsonl", 50),
    "older files": older,
}


@pytest.mark.parametrize("damage", LOST)
def test_lines_that_were_lost_are_put_back_from_the_checkpoint(interrupted: Path, whole: Path, damage: str) -> None:
    LOST[damage](interrupted)
    with pytest.warns(UserWarning, match=r"lines: put back from the checkpoint of step 8"):
        go_on(interrupted)
    assert contents(interrupted) == contents(whole)


def test_an_older_checkpoint_and_newer_files_are_cut_back_to_it(interrupted: Path, whole: Path) -> None:
    (interrupted / "checkpoints/step-00000008.safetensors").unlink()
    go_on(interrupted)
    assert contents(interrupted) == contents(whole)


def replaced(name: str, old: str, new: str) -> Callable[[Path], object]:
    def act(path: Path) -> None:
        text = (path / name).read_text()
        assert old in text
        (path / name).write_text(text.replace(old, new))

    return act


def no_proof_of_both(path: Path) -> None:
    (path / "evidence/step-00000003.json").unlink()


UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "another ledger": (replaced("ledger.jsonl", "wrong", "right"), r"ledger\.jsonl: does not fit the checkpoint"),
    "another accuracy": (replaced("metrics.jsonl", "0.3", "0.4"), r"metrics\.jsonl: does not fit the checkpoint"),
    "a proof lost": (no_proof_of_both, r"evidence/step-00000003\.json: cannot be read \(No such file"),
    "a proof changed": (
        replaced("evidence/step-00000000.json", "of", "in"),
        r"evidence/step-00000000\.json: is not what it was",
    ),
    "no settings": (without("config.yaml"), r"holds checkpoints, but no config\.yaml"),
}


@pytest.mark.parametrize("damage", UNFIT)
def test_what_cannot_be_put_back_is_refused_with_what_to_do(interrupted: Path, damage: str) -> None:
    act, message = UNFIT[damage]
    act(interrupted)
    with pytest.raises(RunFolderError, match=message) as error:
        go_on(interrupted)
    assert "copy " in str(error.value) and "delete it" in str(error.value)


def test_a_proof_that_only_the_newest_checkpoint_vouches_for_is_made_again(interrupted: Path, whole: Path) -> None:
    (interrupted / "evidence/step-00000006.json").unlink()
    with pytest.warns(UserWarning, match=r"step-00000006\.json: .* going on from the checkpoint of step 4"):
        go_on(interrupted)
    assert contents(interrupted) == contents(whole) and (interrupted / "evidence/step-00000006.json").exists()


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_finished_run_with_files_that_its_summary_was_not_made_of_is_refused(
    tmp_path: Path, whole: Path, name: str, damage: str
) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    assert read_run(path).summary == RunFolder(path, CONFIG).summary()
    (without(name) if damage == "missing" else cut(name, 60))(path)
    message = rf"{name}: is {'missing' if damage == 'missing' else 'not the one'}.*summary\.json was made of"
    for use in (lambda: RunFolder(path, CONFIG).summary(), lambda: read_run(path)):
        with pytest.raises(RunFolderError, match=message):
            use()
    (path / "summary.json").unlink()  # as the line says
    folder = RunFolder(path, CONFIG, events=False)
    assert folder.load_checkpoint() is not None
    with pytest.warns(UserWarning, match="put back"):
        folder.start(10)
    assert contents(path) == contents(whole)


def test_a_vouched_file_is_never_in_memory_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse one has a few bytes on the disk, and any number in memory."""
    (tmp_path / "a").write_bytes(b"12345")
    summary = {FILES: {"a": blake3(b"12345").hexdigest(16)}}
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it is read as a whole"))
    check_finished(tmp_path, summary, None)
    monkeypatch.setattr("btard.audit.vouching.MAX_FILE", 4)
    with pytest.raises(RunFolderError, match=r"/a: is not the one that summary\.json was made of"):
        check_finished(tmp_path, summary, None)
    os.mkfifo(tmp_path / "step")
    (tmp_path / "checkpoints").symlink_to(tmp_path)
    with pytest.raises(RunFolderError, match=r"/step: is not the one"):
        check_finished(tmp_path, {FILES: {"checkpoints/step": "00"}}, None)


def test_a_strangers_summary_is_refused_in_a_line_that_a_terminal_shows(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names the files of which it was made, by any words."""
    for name in ("", ".", "\0", "\ud800", "x\x1b[2J\n\u202eok", "../x"):
        (tmp_path / "summary.json").write_text(json.dumps({FILES: {name: "00"}}))
        with pytest.raises(RunFolderError) as refused:
            check_finished(tmp_path, read_summary(tmp_path) or {}, None)
        with pytest.raises(SystemExit):
            exit_with(refused.value)
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said[:-1].isprintable() and said.endswith("\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n' + "[" * 100_000 + "\n")
    assert [value for value, _ in lines_of(tmp_path / "metrics.jsonl")] == [{"step": 0}]
    (tmp_path / "summary.json").write_text("[" * 100_000)
    with pytest.raises(RunFolderError, match="damaged"):
        read_summary(tmp_path)
    monkeypatch.setattr("btard.harness.run_folder.MAX_SUMMARY", 10)
    with pytest.raises(RunFolderError, match="at most 10 bytes are read"):
        read_summary(whole)
