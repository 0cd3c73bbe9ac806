"""A sweep in TensorBoard and in Weights & Biases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resnet.experiments.tracking import BANNED_TAG
from resnet.report import main
from tests.resnet.sweeps import ATTACKS, BTARD, STEPS, early, make_grid, write_sweep
from tests.wandb_files import records


def test_tensorboard_shows_each_run_with_its_bans_settings_and_outcome(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    out = write_sweep(tmp_path / "s", make_grid(experiments=early()))
    for _ in range(2):  # the second time replaces the first
        assert main([str(out), "--tensorboard"]) == 0
    place = out / "report/tensorboard"
    events = list(place.rglob("events.out.tfevents.*"))
    assert {str(file.parent.relative_to(place)) for file in events} == {
        str(folder.parent.relative_to(out / "runs")) for folder in (out / "runs").rglob("summary.json")
    }
    assert len(events) == 12
    run = EventAccumulator(str(place / "btard-tau-10/alie/seed-1"), size_guidance={"scalars": 0}).Reload()
    accuracy = run.Scalars("accuracy/test")
    assert [event.step + 1 for event in accuracy] == list(STEPS)
    assert accuracy[-1].value == pytest.approx(0.37)
    banned = {event.step: event.value for event in run.Scalars(BANNED_TAG)}
    assert [banned[10 + step] for step in (0, 1, 2, 20, 21)] == [0, 1, 3, 6, 7]
    assert run.Scalars("deepest dip")[0].value == pytest.approx(2)
    assert run.Scalars("steps until last ban")[0].value == 21
    content = run.PluginTagToContent("hparams")
    started = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    settings = {name: getattr(value, value.WhichOneof("kind")) for name, value in started.hparams.items()}
    assert settings["attack"] == "ALIE" and settings["defence"] == "BTARD, tau 10" and settings["tau"] == "10.0"
    assert (settings["start"], settings["every"], settings["byzantine"], settings["seed"]) == (10, 1, 7, 1)
    described = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    choices = {info.name: [v.string_value for v in info.domain_discrete.values] for info in described.hparam_infos}
    assert choices["attack"] == sorted(ATTACKS)
    assert "final accuracy" in {info.name.tag for info in described.metric_infos}
    quiet = EventAccumulator(str(place / "btard-tau-1/no-attack/seed-0")).Reload()
    assert BANNED_TAG not in quiet.Tags()["scalars"] and "deepest dip" not in quiet.Tags()["scalars"]
    assert quiet.PluginTagToContent("hparams").keys() == content.keys()


def test_wandb_gets_each_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    out = write_sweep(tmp_path / "s", make_grid(experiments=early(seeds=[0], defences=BTARD[:1], attacks=["ALIE"])))
    assert main([str(out), "--wandb", "a-project"]) == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s"]  # nothing beside the report
    (file,) = (out / "report/wandb").glob("offline-run-*/*.wandb")
    found = records(file)
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"][-1:]
    assert (run.project, run.run_group, run.display_name) == ("a-project", "BTARD, tau 1", "ALIE, BTARD, tau 1, seed 0")
    assert list(run.tags) == ["ALIE", "early"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (config["attack"], config["start"], config["byzantine"]) == ("ALIE", 10, 7)
    history = [record.history.item for record in found if record.WhichOneof("record_type") == "history"]
    logged = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in history]
    assert [row["_step"] + 1 for row in logged if "accuracy/test" in row] == list(STEPS)
    assert max(row.get(BANNED_TAG, 0) for row in logged) == 7


def test_without_wandb_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    out = write_sweep(tmp_path / "s", make_grid(experiments=early(seeds=[0])))
    with pytest.raises(SystemExit):
        main([str(out), "--wandb", "a-project"])
    assert "error: --wandb: the package wandb is not installed; pip install" in capsys.readouterr().err
