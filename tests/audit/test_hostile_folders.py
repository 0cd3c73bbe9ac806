"""A folder that somebody else has made: one line, and nothing is imported because it says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from btard.audit.__main__ import main
from btard.audit.files import write_json
from btard.audit.numerics import numeric_platform
from btard.audit.settings import read_settings, write_settings
from btard.protocol.hashing import stream
from tests.audit.runs import attackers, record, sign


def test_hostile_files_are_refused_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values of other types and sizes anywhere, with digests that fit: an error with its reason, or no harm."""
    rng = stream("hostile files")
    worst = [None, -1, 2**70, 1e308, "x" * 100, "\ud800", [], [[[]]], {}, {"a": 1}, True, "00"]

    def places(value: Any) -> list[tuple[Any, Any]]:
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]

    for file in sorted([*run.glob("*.json"), *(run / "evidence").glob("*.json")]):
        original = file.read_bytes()
        for _ in range(12):
            content = json.loads(original.split(b"\n")[1])
            everywhere = places(content)
            parent, key = everywhere[int(rng.integers(len(everywhere)))]
            parent[key] = worst[int(rng.integers(len(worst)))]
            (sign if "signature" in content else write_json)(file, content)
            capsys.readouterr()
            if main([str(run)]) == 1:
                error = capsys.readouterr().err
                assert error.startswith("refused: ") and error.count("\n") == 1
        for junk in (b"", b"\n", b"x\n{}\n", b"[" * 10**5, b"\xff" * 100):
            file.write_bytes(junk)
            assert main([str(run)]) == 1
        file.unlink()
        file.mkdir()
        assert main([str(run)]) == 1
        file.rmdir()
        file.write_bytes(original)


def test_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    *bans, summary = capsys.readouterr().out.splitlines()
    assert len(bans) == 3 and all(line.startswith("step ") for line in bans)
    assert "3 ledger lines of 3 steps are in order" in summary
    for words, reason in (([str(run / "none")], "none is no folder"), ([str(run), "--task", "nope:x"], "nope")):
        assert main(words) == 1
        assert reason in capsys.readouterr().err


def test_no_other_module_is_imported_because_a_run_folder_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('was imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    content = json.loads((run / "protocol.json").read_text().splitlines()[1])
    assert content["task"] == ""
    for name in ("evil:task_of", "resnet.audit:os", "resnet.audit:task_of:evil", " resnet.audit:task_of"):
        write_json(run / "protocol.json", {**content, "task": name})
        assert main([str(run)]) == 0
        said = capsys.readouterr()
        assert "cannot be made here" in said.err and said.err.count("\n") == 1 and "votes only" in said.out
    write_json(run / "protocol.json", {**content, "task": "resnet.audit:task_of"})
    assert main([str(run)]) == 0
    said = capsys.readouterr()
    assert "config.yaml" in said.err and "votes only" in said.out
    write_json(run / "protocol.json", {**content, "task": 3})
    assert main([str(run)]) == 1
    assert "task" in capsys.readouterr().err


NAMES = {
    "no_such_module:make": "no module no_such_module is found; go to the folder that has it",
    "no_such.module:make": "no module no_such.module is found",
    "shutil:rmtree": "does not import btard",
    "hostile_task:make": "which is no module of yours",
    "os; import this:make": "expected module:function",
    "tests.training.model:nothing": "has no attribute",
    "btard.watch.__main__:main": "makes no task of a run",
}


def test_a_name_in_a_folder_is_no_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    record(folder, **attackers("sign_flip"), steps=12)
    (folder / "hostile_task.py").write_text("import btard\nraise SystemExit('it was imported')\n")
    monkeypatch.syspath_prepend(str(folder))
    config, d, roster = read_settings(folder)
    for name, said in NAMES.items():
        write_settings(folder, config, d, roster, name, numeric_platform())
        assert main([str(folder)]) == 0
        printed = capsys.readouterr()
        assert printed.err.startswith("gradients are not recomputed: the run's task cannot be made here: "), name
        assert said in printed.err and printed.err.count("\n") == 1 and "votes only" in printed.out, name
