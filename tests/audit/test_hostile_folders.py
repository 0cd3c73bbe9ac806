"""A folder that somebody else has made: one line, and nothing is imported because it says so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from btard.audit.__main__ import main
from btard.audit.files import read_bounded, write_json
from btard.audit.numerics import numeric_platform
from btard.audit.settings import read_settings, write_settings
from btard.protocol.hashing import PROTOCOL_VERSION, stream
from btard.protocol.wire import Malformed
from btard.watch.__main__ import main as watch
from tests.audit.runs import attackers, record, sign
from tests.audit.tampering import proof_of, refused


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


def settings_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "protocol.json").read_text().splitlines()[1])
    return content


@pytest.mark.parametrize("name", ["heal", "tau", "max_absences", "probation", "clip_lambda"])
def test_numbers_that_no_float_holds_are_refused(name: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = settings_of(run)
    content["config"][name] = 10**400
    write_json(run / "protocol.json", content)
    assert main([str(run)]) == 1
    assert f"{name} must be" in capsys.readouterr().err
    (run / "config.yaml").write_text("peers: 9\n")
    (run / "protocol_version").write_text(f"{PROTOCOL_VERSION}\n")
    assert watch([str(run), "--audit"]) == 0
    assert f"The audit refuses this run: protocol.json: {name} must be" in (run / "page.html").read_text()


def test_files_of_any_size_are_read_within_bounds(run: Path) -> None:
    """A sparse file says that it has terabytes, one of /proc that it has none, and either is a link of a few bytes."""
    with pytest.raises(Malformed, match="maps: too long, at most 10 bytes are read"):
        read_bounded(Path("/proc/self/maps"), 10)
    file, _ = proof_of(run, "misreport")
    os.truncate(file.with_suffix(".safetensors"), 2**23)
    refused(run, r"safetensors: too long, at most \d+ bytes are read")
    (run / "ledger.jsonl").unlink()
    os.mkfifo(run / "ledger.jsonl")
    refused(run, "ledger.jsonl: missing")


def test_small_values_are_counted_before_they_are_decoded(run: Path) -> None:
    """A list without entries takes 20 times the memory of its three bytes."""
    text = b'{"version":[' + b"[]," * 2**21 + b"[]]}"
    (run / "protocol.json").write_bytes(blake3(text).hexdigest().encode() + b"\n" + text + b"\n")
    refused(run, "protocol.json: 4194307 values, at most 4194304 are read")


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
