"""Trainers: a run's files and audit, returning, joining, starting points."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from albert.config import Config
from albert.trainer import main
from btard.audit.__main__ import main as audit
from btard.audit.report import MEASURED
from btard.drivers.loop import Fallen
from btard.harness.run_folder import RunFolderError, read_metrics
from btard.harness.settings import config_text
from btard.harness.typed_yaml import ConfigError
from btard.protocol.hashing import PROTOCOL_VERSION
from btard.swarm.checkpoint import load_start, save_start
from btard.swarm.config import AttackConfig
from btard.swarm.trainer import Trainer
from tests.albert.trainers import SOURCE, Trainers, same, tiny


@pytest.fixture
def swarm(data: Path, tmp_path: Path) -> Iterator[Any]:
    made: list[Trainers] = []

    def make(**changes: Any) -> Trainers:
        made.append(Trainers(tiny(data, **changes), tmp_path / f"swarm-{len(made)}"))
        return made[-1]

    yield make
    for trainers in made:
        trainers.close()


def test_a_run_leaves_what_an_audit_needs(swarm: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trainers = swarm()
    ends = trainers.run()
    assert same(ends) and all(end["signed_by"] == [0, 1, 2, 3] for end in ends.values())
    for number in trainers.numbers:
        folder = trainers.out / f"peer-{number}"
        metrics = read_metrics(folder)
        assert [line["step"] for line in metrics] == list(range(6))
        assert {line["active"] for line in metrics} == {4} and all(line["sent"] > 0 for line in metrics)
        assert {line["samples"] for line in metrics[1:]} == {9}  # 3 workers, one third of 8 sequences each
        assert audit([str(folder)]) == 0
        assert "4 of 4" in capsys.readouterr().out or number
    assert any(line["loss"] for line in read_metrics(trainers.out / "peer-0"))


def test_a_trainer_that_was_killed_comes_back_with_the_state_of_the_majority(swarm: Any) -> None:
    """However fast the others' steps are: `max_away` is a minute, and `max_absences` of them are long over."""
    trainers = swarm(steps=60, protocol=replace(Config().protocol, max_absences=2))
    for number in trainers.numbers:
        trainers.make(number)
    trainers.kill_at(3, 3, "compute")
    for number in trainers.numbers:
        trainers.start(number)
    trainers.wait(3)
    trainers.make(3)
    trainers.start(3)
    ends = trainers.wait()
    kinds = [ban["kind"] for ban in ends[0]["bans"] if ban["peer"] == 3]
    assert "gone" not in kinds, trainers.lines
    if kinds:  # it was a validator then, and those owe their duty
        assert isinstance(ends[3], Fallen)
        return
    assert same(ends), trainers.lines
    assert any("with the state of the majority" in line for line in trainers.lines[3])
    assert ends[0]["bans"] == [] and ends[3]["evidence"] is False


def test_an_attack_run_starts_from_a_checkpoint(swarm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = swarm(steps=3)
    first.run()
    file = tmp_path / "step-00000003.safetensors"
    save_start(file, 3, first.trainers[0].optimizer.state(), (0, 1, 2, 3), "digest")
    attacked = swarm(
        run_id="from there",
        peers=5,
        byzantine=1,
        steps=12,
        start_from=str(file),
        attack=AttackConfig(name="random_direction", start=4),
        protocol=replace(Config().protocol, max_absences=50, heal=8),
    )
    ends = attacked.run()
    honest = {n: end for n, end in ends.items() if n not in attacked.config.attackers()}
    assert same(honest)
    metrics = read_metrics(attacked.out / f"peer-{min(honest)}")
    assert [line["step"] for line in metrics] == list(range(3, 12))
    assert metrics[0]["lr"] == first.trainers[0].optimizer.lr(3)
    assert all(ban["step"] >= 5 for end in honest.values() for ban in end["bans"])
    looked = [line for line in attacked.lines[min(honest)] if "earlier state" in line or ": back to step" in line]
    removed = [ban["step"] + 1 for ban in honest[min(honest)]["bans"] if ban["step"] + 1 < 12]
    assert removed and [line.split(":")[0] for line in looked] == [f"step {step}" for step in removed]
    assert audit([str(attacked.out / f"peer-{min(honest)}")]) == 0
    assert len(removed) == capsys.readouterr().out.count(MEASURED)


def test_checkpoints_of_other_models_are_refused(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "start.safetensors"
    save_start(file, 3, {"parameters": torch.zeros(3)}, (), "digest")
    with pytest.raises(ConfigError, match=r"expected parameters \(\d+,\) of torch.float32, found \(3,\)"):
        Trainer(tiny(data, start_from=str(file), peer=0), tmp_path / "out", SOURCE)
    save_file({"parameters": torch.zeros(3)}, file, {"btard.albert": '{"step": 3}'})
    with pytest.raises(
        ConfigError, match=f"is of protocol version none, this is version {PROTOCOL_VERSION}; run the baseline again"
    ):
        load_start(file, {})
    file.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is no checkpoint of a coordinator"):
        load_start(file, {})
    with pytest.raises(ConfigError, match="is no checkpoint"):
        load_start(tmp_path / "missing", {})


def test_somebody_joins_serves_its_probation_and_becomes_a_member(swarm: Any) -> None:
    trainers = swarm(steps=60, protocol=replace(Config().protocol, max_absences=50, probation=2))
    trainers.expect(4)
    for number in trainers.numbers:
        trainers.make(number)
        trainers.start(number)
    # The address of any peer will do: it lists the first ones, too.
    known = trainers.trainers[1].node.addresses[0]
    trainers.make(4, peer=None, network=replace(trainers.config.network, initial_peers=known))
    trainers.start(4)
    ends = trainers.wait()
    assert isinstance(ends[4], dict), (ends[4], trainers.lines[4])
    assert ends[4]["peer"] == 4 and ends[4]["active"] == [0, 1, 2, 3, 4]
    assert same(ends)
    entries = [json.loads(line) for line in (trainers.out / "peer-0" / "ledger.jsonl").read_text().splitlines()]
    assert [entry["kind"] for entry in entries] == ["join", "member"]


def test_a_folder_of_another_run_is_refused(data: Path, tmp_path: Path, swarm: Any) -> None:
    trainers = swarm(steps=3)
    trainers.run()
    with pytest.raises(RunFolderError, match="holds a run with seed 0, not 1"):
        Trainer(replace(trainers.config, peer=0, seed=1), trainers.out / "peer-0", SOURCE)
    # Where it listens and how long it waits may change.
    moved = replace(trainers.config, peer=0, network=replace(trainers.config.network, port=31337))
    Trainer(moved, trainers.out / "peer-0", SOURCE)


def test_a_gpu_that_is_too_small_is_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: Trainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ...")

    monkeypatch.setattr(Trainer, "run", full)
    file = tmp_path / "swarm.yaml"
    file.write_text(config_text(tiny(data, peer=0)))
    with pytest.raises(SystemExit, match="2"):
        main([str(file), "--out", str(tmp_path / "out")])
    advice = "compute fewer samples at once, or in half precision, at all peers alike"
    assert capsys.readouterr().err == f"error: CUDA out of memory: {advice}\n"
