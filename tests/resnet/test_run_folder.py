"""Run folders: what is written can be read, an interruption leaves no trace, and damage is noticed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from btard.harness.run_folder import (
    TAGS,
    RunFolder,
    RunFolderError,
    read_costs,
    read_metrics,
    read_summary,
    read_timings,
)
from btard.harness.settings import read_config
from resnet.config import Config

CONFIG = Config(steps=10)


def tensors(step: int) -> dict[str, torch.Tensor]:
    base = torch.arange(6.0) + step
    return {
        "params": base,
        "part": base[2:4],  # shares memory with params
        "columns": base.view(2, 3).T,  # is not contiguous
        "bytes": torch.tensor(list(b"coin"), dtype=torch.uint8),
        "nothing": torch.zeros(0),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }


def train(folder: RunFolder, first: int, last: int) -> None:
    """What a training loop does, with a ban in every third step and a checkpoint at every fourth."""
    folder.start(first)
    for step in range(first, last):
        folder.log(step, {"step": step, "loss": 1 / (step + 1)})
        if step % 3 == 0:
            folder.log_ledger([json.dumps({"step": step, "kind": "gradient"})])
        if (step + 1) % 4 == 0:
            folder.save_checkpoint(step + 1, tensors(step + 1), {"seen": list(range(step + 1))})


def texts(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in ("config.yaml", "metrics.jsonl", "ledger.jsonl")} | {
        file.name: file.read_bytes() for file in (path / "checkpoints").iterdir()
    }


def test_checkpoint_comes_back_bit_by_bit(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b", CONFIG)
    assert folder.load_checkpoint() is None
    assert folder.summary() is None
    state = {"text": "ä", "nested": {"list": [1, 2.5, None, True]}}
    folder.save_checkpoint(7, tensors(7), state)
    step, loaded, loaded_state = RunFolder(tmp_path / "a" / "b", CONFIG).load_checkpoint()
    assert (step, loaded_state) == (7, state)
    assert loaded.keys() == tensors(7).keys()
    for name, tensor in tensors(7).items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_interrupted_run_leaves_the_files_of_an_uninterrupted_one(tmp_path):
    train(RunFolder(tmp_path / "whole", CONFIG), 0, 10)
    train(RunFolder(tmp_path / "broken", CONFIG), 0, 7)
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # killed while it wrote
    again = RunFolder(tmp_path / "broken", CONFIG)
    step, _, state = again.load_checkpoint()
    assert (step, state) == (4, {"seen": [0, 1, 2, 3]})
    train(again, step, 10)
    assert texts(tmp_path / "broken") == texts(tmp_path / "whole")
    assert [line["step"] for line in again.metrics()] == list(range(10))
    assert [json.loads(line)["step"] for line in again.ledger()] == [0, 3, 6, 9]


def test_tensorboard_drops_what_came_after_the_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(RunFolder(tmp_path / "r", CONFIG), 0, 7)
    again = RunFolder(tmp_path / "r", CONFIG)
    train(again, 4, 10)
    again.note("bans", 9, "step 9: banned peer 3")
    again.close()
    events = EventAccumulator(str(tmp_path / "r" / "tb")).Reload()
    assert events.Tags()["tensors"] == ["bans/text_summary"]
    assert events.Tensors("bans/text_summary")[0].tensor_proto.string_val == [b"step 9: banned peer 3"]
    assert events.Tags()["scalars"] == [TAGS["loss"]]
    assert [event.step for event in events.Scalars(TAGS["loss"])] == list(range(10))


def test_run_without_a_checkpoint_starts_over(tmp_path):
    train(RunFolder(tmp_path / "r", CONFIG), 0, 3)
    again = RunFolder(tmp_path / "r", CONFIG)
    assert again.load_checkpoint() is None
    train(again, 0, 2)
    assert [line["step"] for line in again.metrics()] == [0, 1]


def test_newest_two_checkpoints_are_kept_in_order_of_steps(tmp_path):
    folder = RunFolder(tmp_path / "r", CONFIG)
    for step in (99_999_998, 99_999_999, 100_000_000):  # the last has more digits than the name provides for
        folder.save_checkpoint(step, {}, {})
    assert folder.load_checkpoint() == (100_000_000, {}, {})
    assert len(list((tmp_path / "r" / "checkpoints").iterdir())) == 2


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, lambda file: file.write_bytes(b"")])
def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    folder = RunFolder(tmp_path / "r", CONFIG)
    train(folder, 0, 9)
    newest = tmp_path / "r" / "checkpoints" / "step-00000008.safetensors"
    damage(newest)
    with pytest.warns(UserWarning, match=r"step-00000008\.safetensors: damaged"):
        step, loaded, _ = folder.load_checkpoint()
    assert step == 4
    assert torch.equal(loaded["params"], tensors(4)["params"])
    folder.start(step)
    assert not newest.exists()
    assert len(folder.metrics()) == 4
    damage(tmp_path / "r" / "checkpoints" / "step-00000004.safetensors")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(RunFolderError, match="every checkpoint is damaged"):
        folder.load_checkpoint()


def test_crash_while_saving_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path / "r", CONFIG)
    folder.save_checkpoint(1, tensors(1), {})

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("btard.files.put_in_place", crash)
    with pytest.raises(KeyboardInterrupt):
        folder.save_checkpoint(2, tensors(2), {})
    assert folder.load_checkpoint()[0] == 1


def test_folder_of_another_run_is_refused(tmp_path):
    train(RunFolder(tmp_path / "r", CONFIG), 0, 1)
    with pytest.raises(RunFolderError, match=r"holds a run with seed 0, not 3; choose another --out"):
        RunFolder(tmp_path / "r", replace(CONFIG, seed=3))
    with pytest.raises(RunFolderError, match=r"holds a run with steps 10, not 11 \(also different: seed\); choose"):
        RunFolder(tmp_path / "r", replace(CONFIG, seed=3, steps=11))
    with pytest.raises(RunFolderError, match=r"holds a run with test_samples null, not 5; choose"):
        RunFolder(tmp_path / "r", replace(CONFIG, test_samples=5))
    RunFolder(tmp_path / "r", replace(CONFIG, checkpoint_every=3))


def test_settings_of_an_attempt_without_a_step_bind_nobody(tmp_path):
    RunFolder(tmp_path / "r", CONFIG)
    RunFolder(tmp_path / "r", replace(CONFIG, seed=3))
    assert read_config(Config, tmp_path / "r" / "config.yaml").seed == 3


def test_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match=r"holds other files \(thesis.tex\) and no run"):
        RunFolder(tmp_path, CONFIG)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunFolderError, match="cannot be used as a run folder"):
        RunFolder(tmp_path / "thesis.tex", CONFIG)


def test_damaged_settings_are_named(tmp_path):
    train(RunFolder(tmp_path / "r", CONFIG), 0, 1)
    (tmp_path / "r" / "config.yaml").write_text("seed: [")
    with pytest.raises(RunFolderError, match=r"config\.yaml: not valid YAML"):
        RunFolder(tmp_path / "r", CONFIG)


def test_summary_marks_a_run_as_finished(tmp_path):
    folder = RunFolder(tmp_path / "r", CONFIG)
    train(folder, 0, 10)
    folder.write_summary({"test_accuracy": 0.5})
    assert RunFolder(tmp_path / "r", CONFIG).summary() == {"test_accuracy": 0.5}
    (tmp_path / "r" / "summary.json").write_text('{"test_acc')
    with pytest.raises(RunFolderError, match=r"summary\.json: damaged"):
        read_summary(tmp_path / "r")


def test_state_that_is_not_json_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "r", CONFIG)
    with pytest.raises(TypeError):
        folder.save_checkpoint(1, {}, {"object": object()})


@pytest.mark.parametrize("seconds", [None, {"part": 0.5}])
def test_bytes_stand_with_the_seconds_and_are_never_lost(seconds, tmp_path):
    folder = RunFolder(tmp_path / "r", CONFIG)
    folder.start(0)
    folder.log(0, {"loss": 1.0, "bytes": {"part": 7}}, seconds)
    folder.close()
    kept = read_costs(tmp_path / "r") if seconds else read_metrics(tmp_path / "r")
    assert kept == [{"step": 0, **(seconds or {"loss": 1.0}), "bytes": {"part": 7}}]
    assert read_timings(tmp_path / "r") == ([{"step": 0, **seconds}] if seconds else [])


def test_what_is_not_a_number_is_null(tmp_path):
    folder = RunFolder(tmp_path / "r", CONFIG)
    folder.start(0)
    folder.log(0, {"loss": float("nan"), "norm": float("inf"), "note": "diverged"})
    assert read_metrics(tmp_path / "r") == [{"step": 0, "loss": None, "norm": None, "note": "diverged"}]


HOLD_THE_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


def test_folder_that_another_process_writes_to_is_refused_until_it_ends(tmp_path):
    folder = RunFolder(tmp_path / "r", CONFIG)
    lock = str(tmp_path / "r" / ".lock")
    command = [sys.executable, "-c", HOLD_THE_LOCK, lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(RunFolderError, match="another process is training in this folder"):
            folder.start(0)
        other.communicate()
    folder.start(0)
