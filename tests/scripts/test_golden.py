"""The golden record: this tree does what the file says, and what a change leaves behind is found."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from btard.protocol.config import ProtocolConfig
from btard.task import QuadraticTask
from scripts.golden import compare, file
from scripts.golden.__main__ import main
from scripts.golden.differences import SECTIONS, Record, differences
from scripts.golden.recorder import work_of
from scripts.golden.runs import cases, record

KEYS = [(case.section, case.name, case.seed) for case in cases(file.SECTIONS, file.SEEDS)]
SAMPLE = [*[key for key in KEYS if key[0] != "soak"][::40], ("soak", "mixture", 7)]
ROW = "equivocate(phase=report, shown=half/one) 1 of 5"


def fields_of(key: tuple[str, str, int]) -> dict[str, Any]:
    [case] = [case for case in work_of([key[0]], file.SEEDS, key[1]) if (case.name, case.seed) == key[1:]]
    return record(case)


@pytest.fixture(scope="module")
def whole() -> Record:
    """The record of one run, all of its fields."""
    return {("matrix", ROW, 0): fields_of(("matrix", ROW, 0))}


@pytest.mark.parametrize("key", SAMPLE, ids=str)
def test_a_sample_comes_to_what_the_file_says(key: tuple[str, str, int]) -> None:
    golden = {key: file.read([key[0]], file.SEEDS, key[1])[key]}
    assert not [str(found) for found in differences(golden, {key: file.portable(fields_of(key))})]


def test_the_file_has_every_run_once_and_none_failed() -> None:
    golden = [tuple(key) for *key, _ in json.loads(file.FILE.read_text("utf-8"))]
    assert golden == KEYS
    assert not compare.failed(file.read(file.SECTIONS, file.SEEDS, ""))


def test_other_roundings_change_the_parameters_but_not_what_the_file_keeps(
    whole: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = QuadraticTask.gradients

    def off(self: QuadraticTask, params: Any, requests: Any, out: Any, **options: Any) -> Any:
        answered = gradients(self, params, requests, out, **options)
        out.mul_(1 + 1e-6)
        return answered

    monkeypatch.setattr(QuadraticTask, "gradients", off)
    [(key, fields)] = whole.items()
    rounded = fields_of(key)
    assert "parameters" in {found.field for found in differences(whole, {key: rounded})}
    assert file.portable(rounded) == file.portable(fields)


def test_a_change_of_the_protocol_is_found(whole: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProtocolConfig, "rounds", 0)
    [(key, fields)] = whole.items()
    changed = fields_of(key)
    found = {str(one).split(" | ")[3].partition(" at ")[0] for one in differences(whole, {key: changed})}
    assert {"effects", "sent"} <= found
    assert file.portable(changed) != file.portable(fields)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str, str]] = {
    "an effect": (
        lambda fields: fields["effects"][1].update({"0": "Compute compute, Broadcast announce"}),
        'effects at [1]["0"]',
        "(absent)",
        "Compute compute, Broadcast announce",
    ),
    "a byte": (lambda fields: fields["sent"].update({"0": [1, 2]}), 'sent at ["0"][0]', "", "1"),
    "a verdict": (
        lambda fields: fields["entries"][0].update(kind="gone"),
        'entries at [0]["kind"]',
        "equivocation",
        "gone",
    ),
    "a coin": (lambda fields: fields["coins"].append("00"), "coins at [", "(absent)", "00"),
    "a proof": (lambda fields: fields["proofs"].pop("protocol.json"), 'proofs at ["protocol.json"]', "", "(absent)"),
    "the parameters": (lambda fields: fields.update(parameters="0"), "parameters", "", "0"),
    "a field": (lambda fields: fields.pop("head"), "head", "", "(absent)"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_difference_is_one_readable_line(
    what: str, whole: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, where, old, new = CHANGES[what]
    changed = copy.deepcopy(dict(whole))
    change(changed["matrix", ROW, 0])
    monkeypatch.setattr(compare, "both", lambda *_: (whole, changed))
    assert main(["compare", "HEAD"]) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("matrix | ")]
    parts = line.split(" | ")
    assert parts[:3] == ["matrix", ROW, "seed 0"]
    assert parts[3].startswith(where) and old in parts[4] and parts[5] == new


def test_equal_records_are_equal_and_a_run_that_is_missing_or_failed_is_not(
    whole: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(compare, "both", lambda *_: (whole, copy.deepcopy(whole)))
    assert main(["compare", "HEAD", "--keep", str(tmp_path / "kept.json")]) == 0
    assert "no difference" in capsys.readouterr().out
    assert json.loads((tmp_path / "kept.json").read_text()).keys() == {"old", "new"}
    monkeypatch.setattr(compare, "both", lambda *_: (whole, {}))
    assert main(["compare", "HEAD"]) == 1
    assert f"matrix | {ROW} | seed 0 | the run | (there) | (absent)" in capsys.readouterr().out
    broken = {("swarm", "a", 0): {"error": "OSError: no port"}}
    monkeypatch.setattr(compare, "both", lambda *_: (broken, broken))
    assert main(["compare", "HEAD"]) == 1
    assert "swarm | a | 0 | failed here: OSError: no port" in capsys.readouterr().out


def test_a_tree_records_itself_in_a_process_of_its_own(whole: Record, tmp_path: Path) -> None:
    steps: list[dict[str, int]] = []
    words = ["--only=matrix", "--seeds=1", "--match", ROW, "--jobs=1"]
    assert compare.record_of(compare.ROOT, words, lambda **told: steps.append(told), []) == whole
    assert steps == [{"total": 1}, {"advance": 1}]
    broken = tmp_path / "scripts/golden"
    broken.mkdir(parents=True)
    (broken / "__main__.py").write_text("print(1, flush=True)\nraise SystemExit('no such option')\n")
    with pytest.raises(compare.GoldenError, match="the recorder failed: no such option"):
        compare.record_of(tmp_path, [], lambda **_: None, [])


def test_a_commit_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "no-such-commit", "--match", ROW, "--only", "matrix"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: no-such-commit: git has no such commit here")
    assert set(file.SECTIONS) < set(SECTIONS)
