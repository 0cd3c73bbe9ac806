"""Whole runs on the embedded digits: outcome, files, reruns, interruptions, and one clear line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from btard.harness.run_folder import RunFolderError, steps_per_second
from btard.harness.settings import read_config
from btard.harness.typed_yaml import ConfigError
from resnet.audit import task_of
from resnet.config import Config
from resnet.data import DataError, load_dataset
from resnet.experiments.warmup import branch, extend, warm_up_of
from resnet.train import main
from resnet.training import Training, knowing, train
from tests.resnet.trained import ATTACK, DIGITS, ROOT, SMALL, config_of, files_of, train_killed


@pytest.mark.parametrize(
    "words",
    [
        ("--aggregator.name", "btard"),
        ("--aggregator.name", "btard", "--mode", "per_peer"),
        ("--aggregator.name", "krum", "--byzantine", "1"),
    ],
    ids=["btard", "per_peer", "server"],
)
@pytest.mark.parametrize("attack", ["sign_flip", "delayed_gradient"])
def test_reruns_and_interrupted_runs_are_equal_to_the_bit(
    words: tuple[str, ...], attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delay = ["--attack.delay", "3"] if attack == "delayed_gradient" else []
    config = config_of(*ATTACK, "--attack.name", attack, *delay, *words)
    train(config, tmp_path / "a", progress=False)
    train(config, tmp_path / "b", progress=False)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    train_killed(config, tmp_path / "c", (2, 7), monkeypatch)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "c")


def test_the_radius_that_follows_the_steps_is_logged(tmp_path: Path) -> None:
    train(config_of("--protocol.tau", "auto", *ATTACK), tmp_path / "auto", progress=False)
    train(config_of("--protocol.tau", "1"), tmp_path / "fixed", progress=False)
    auto, fixed = ([json.loads(x) for x in (tmp_path / n / "metrics.jsonl").open()] for n in ("auto", "fixed"))
    taus = [line["tau"] for line in auto]
    assert taus[0] == 1e-9 and len(set(taus)) > 5 and min(taus) > 0  # it stays where too few reports are sure
    assert all("tau" not in line for line in fixed)


def test_summary_tells_who_was_banned_and_why(tmp_path: Path) -> None:
    config = config_of(*ATTACK, "--steps", "40", "--eval_every", "40")
    summary = train(config, tmp_path, progress=False)
    assert summary["byzantine"] == sorted(config.attackers())
    assert summary["byzantine_banned"] == 2 and summary["honest_banned"] == 0
    assert {ban["peer"] for ban in summary["bans"]} == config.attackers()
    for ban in summary["bans"]:
        assert ban["kind"] == "wrong_gradient" and ban["step"] > 2
        assert ban["accuser"] not in config.attackers()
    assert summary["steps"] == 40 and steps_per_second(tmp_path) > 0 and 0 <= summary["test_accuracy"] <= 1
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert train(config, tmp_path, progress=False) == summary  # finished: nothing is done again
    assert list((tmp_path / "tb").iterdir())


def test_ideal_commitments_make_the_same_run_without_evidence(tmp_path: Path) -> None:
    hashed = train(config_of(*ATTACK), tmp_path / "hashed", progress=False)
    ideal = train(config_of(*ATTACK, "--commitments=ideal"), tmp_path / "ideal", progress=False)
    assert ideal["bans"] == hashed["bans"] != []
    assert ideal["commitments"] == "ideal" and hashed["commitments"] == "hashed"
    assert (
        files_of(tmp_path / "ideal")["tensors"]["parameters"] == files_of(tmp_path / "hashed")["tensors"]["parameters"]
    )
    assert (tmp_path / "hashed/evidence").exists() and not (tmp_path / "ideal/evidence").exists()


def test_an_emulated_run_bans_by_chance_and_goes_on(tmp_path: Path) -> None:
    words = ("--aggregator.name", "emulated", "--aggregator.bans", "pairs", "--protocol.validators", "2")
    summary = train(config_of(*ATTACK, *words, "--protocol.tau", "1"), tmp_path, progress=False)
    assert summary is not None and summary["honest_banned"] == 0
    assert {ban["kind"] for ban in summary["bans"]} == {"drawn"}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["active"] for line in lines} == {6}, "who is banned is replaced"


def test_the_mean_is_destroyed_where_btard_is_not(tmp_path: Path) -> None:
    words = (*ATTACK, "--steps", "60", "--eval_every", "60", "--model.width", "4", "--protocol.tau", "1")
    mean = train(config_of(*words, "--aggregator.name", "mean"), tmp_path / "mean", progress=False)
    btard = train(config_of(*words), tmp_path / "btard", progress=False)
    assert mean["test_accuracy"] < 0.3 and not mean["bans"]
    assert btard["test_accuracy"] > mean["test_accuracy"] + 0.3


def test_peer_0_is_never_byzantine_and_seeds_draw_differently() -> None:
    drawn = [config_of(*ATTACK, "--seed", str(seed)).attackers() for seed in range(30)]
    assert all(0 not in members and len(members) == 2 for members in drawn)
    assert len(set(drawn)) > 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modle.width", "3"], "modle.width"),
        (["--model.width", "three"], "model.width"),
        (["--attack.name", "sign_flop", "--byzantine", "2"], "sign_flip"),
        (["--data.name", "folder", "--data.path", "/no/such/folder"], "/no/such/folder"),
        (["--byzantine", "3", "--attack.name", "alie"], "byzantine"),
        ([*ATTACK, "--aggregator.name", "bulyan"], "bulyan needs"),
        ([*ATTACK, "--attack.name", "misreport", "--aggregator.name", "mean"], "attacks the protocol"),
    ],
)
def test_a_mistake_is_one_clear_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([DIGITS, "--out", str(tmp_path / "run"), *SMALL, *words])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_a_corrupt_archive_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "broken.tar.gz"
    archive.write_bytes(b"not an archive")
    with pytest.raises(SystemExit) as stopped:
        main([DIGITS, "--out", str(tmp_path / "run"), *SMALL, "--data.name", "folder", "--data.path", str(archive)])
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "broken.tar.gz" in lines[0]


def test_another_config_does_not_overwrite_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(config_of("--steps", "2"), tmp_path, progress=False)
    with pytest.raises(SystemExit):
        main([DIGITS, "--out", str(tmp_path), *SMALL, "--steps", "3"])
    assert "steps" in capsys.readouterr().err


def images(folder: Path) -> Config:
    """The settings of a short run on a tree of images, which is made."""
    for split in ("train", "test"):
        for number, name in enumerate(("a", "b")):
            for k in range(2):
                file = folder / split / name / f"{k}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 50 * number + k).save(file)
    return config_of("--data.name", "folder", "--data.path", str(folder))


def test_a_run_goes_on_with_the_data_it_was_begun_with_alone(tmp_path: Path) -> None:
    config = images(tmp_path / "images")
    assert train(config, tmp_path / "run", progress=False, until=2) is None
    noted = read_config(Config, tmp_path / "run/config.yaml").data.digest
    assert noted == load_dataset("folder", tmp_path / "images").digest
    known = replace(config, data=replace(config.data, digest=noted))
    assert train(known, tmp_path / "run", progress=False, until=3) is None

    (tmp_path / "images/train/a/0.png").rename(tmp_path / "images/train/b/9.png")
    with pytest.raises(RunFolderError, match=f"data.digest {noted}, which is .* now: what it reads has changed"):
        train(config, tmp_path / "run", progress=False)
    with pytest.raises(DataError, match=f"expected data with the digest {noted}"):
        train(known, tmp_path / "other", progress=False)
    with pytest.raises(DataError, match="restore them"):
        task_of(tmp_path / "run")


def test_a_branch_of_a_warm_up_on_other_data_is_refused(tmp_path: Path) -> None:
    config = images(tmp_path / "images")
    extend(warm_up_of(config), tmp_path / "warm-up", 2)
    (tmp_path / "images/train/a/0.png").rename(tmp_path / "images/train/b/9.png")
    now = knowing(config, load_dataset("folder", tmp_path / "images"))
    with pytest.raises(RunFolderError, match="what it reads has changed"):
        branch(now, tmp_path / "run", tmp_path / "warm-up", 2)
    branch(config, tmp_path / "unknown", tmp_path / "warm-up", 2)
    with pytest.raises(RunFolderError, match="what it reads has changed"):
        train(config, tmp_path / "unknown", progress=False)


def test_command_line_from_a_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "resnet.train", DIGITS, "--out", str(tmp_path / "a"), *SMALL, "--steps", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout and (tmp_path / "a/summary.json").exists()
    done = subprocess.run([*command, "--seed", "x"], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2 and "seed" in done.stderr and "Traceback" not in done.stderr


def test_a_gpu_that_is_not_there_or_too_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ...")

    def told(*words: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            main([DIGITS, "--out", str(tmp_path / "run"), *SMALL, *words])
        return capsys.readouterr().err

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (
        told("--device", "cuda") == "error: device cuda: torch finds no GPU; see to its driver, or set device to cpu\n"
    )
    monkeypatch.setattr("resnet.training.train", full)
    advice = "lower batch_size or peers, or set mode to per_peer or device to cpu"
    assert told() == f"error: CUDA out of memory: {advice}\n"


def test_a_lost_ledger_is_put_back_before_the_run_goes_on(tmp_path: Path) -> None:
    config = config_of(*ATTACK, "--steps", "24", "--eval_every", "24")
    summary = train(config, tmp_path / "whole", progress=False)
    assert summary["bans"]
    assert train(config, tmp_path / "part", progress=False, until=summary["bans"][0]["step"] + 2) is None
    (tmp_path / "part/ledger.jsonl").unlink()
    with pytest.warns(UserWarning, match=r"ledger\.jsonl had 0 of .* lines: put back"):
        assert train(config, tmp_path / "part", progress=False) == summary
    assert files_of(tmp_path / "part") == files_of(tmp_path / "whole")


def test_bits_that_a_gpu_does_not_repeat_end_the_run_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(config_of("--mode", "per_peer"), load_dataset("digits"), tmp_path)
    training._check_bits()  # those of a CPU repeat, also of requests that are answered together

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation")

    monkeypatch.setattr(training.task, "gradients", fails)
    with pytest.raises(ConfigError, match=r"protocol.validation exact: adaptive_avg.* implementation"):
        training._check_bits()
