"""The check of a GPU, on the CPU: what must not be is found, all of it is written down, and no section stops others."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from btard.protocol.ledger import Entry
from btard.task import QuadraticTask
from scripts.gpu_check import main
from scripts.gpu_checks import bits, ledgers, machine, parts
from scripts.gpu_checks.rows import Row, Setting
from scripts.gpu_checks.speed import summary
from tests.training.test_kernels import ByChance, ByCompany

TINY = ["--cpu", "--tiny", "--only", "machine", "parts", "--out"]


def content(out: Path) -> dict[str, Any]:
    return json.loads((out / "gpu_check.json").read_text())


def test_findings_are_in_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, str(tmp_path)]) == 0
    found = content(tmp_path)
    assert torch.__version__.startswith(found["about"]["versions"]["torch"]) and found["about"]["tiny"]
    rows = found["rows"]
    assert [row["section"] for row in rows] == ["machine"] * 2 + ["parts"] * 4
    assert rows[-1]["good"] is True and 0 < rows[-1]["numbers"]["float32"] < 1e-5
    table = (tmp_path / "gpu_check.md").read_text()
    assert table.count("\n") == 2 + len(rows) and all(row["found"] in table for row in rows)
    assert f"wrote {tmp_path}/gpu_check.json" in capsys.readouterr().out.replace("\n", "")


def raising(error: Exception) -> Any:
    def rows(setting: Setting) -> Iterator[Row]:
        yield Row("before", "seen")
        raise error

    return rows


def test_a_section_that_fails_says_why_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "rows", raising(ModuleNotFoundError("No module named 'sums'", name="sums")))
    monkeypatch.setattr(parts, "rows", raising(RuntimeError("no such kernel\nat all")))
    assert main([*TINY, str(tmp_path)]) == 1
    found = [(row["what"], row["found"], row["good"]) for row in content(tmp_path)["rows"]]
    assert found[0] == found[2] == ("before", "seen", None)
    assert found[1][0] == "not run" and found[1][1].startswith("sums is not installed") and found[1][2] is None
    assert found[3] == ("failed", "RuntimeError: no such kernel at all", False)
    assert capsys.readouterr().err.endswith("error: 1 of 4 findings are not as they must be\n")


def test_without_a_gpu_there_is_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path)])
    assert stop.value.code == 2 and "finds no GPU; see to its driver, or give --cpu" in capsys.readouterr().err


def test_shares_are_equal_and_what_is_left_over_is_for_the_others() -> None:
    for tiny, expected in ((False, [30, 40, 90]), (True, [90, 90, 90])):
        setting = Setting("cpu", tiny, time.perf_counter() + 90)
        assert [round(share.left, -1) for _, share in setting.shares("abc")] == expected
    assert next(Setting("cpu", True, time.perf_counter() - 1).shares("a"))[1].left < 0


@pytest.mark.parametrize(
    ("kind", "good", "again"),
    [(QuadraticTask, (True, True), 16), (ByCompany, (False, True), 16), (ByChance, (False, False), 0)],
)
def test_bits_that_change_are_found(
    monkeypatch: pytest.MonkeyPatch, kind: type[QuadraticTask], good: tuple[bool, bool], again: int
) -> None:
    monkeypatch.setattr(bits, "resnet_task", lambda *_: (kind(20), torch.ones(20)))
    per_peer, batched = bits.rows(Setting("cpu", True, time.perf_counter() + 60))
    assert (per_peer.good, batched.good) == good
    assert per_peer.numbers["equal rows"]["again"] == (again, 16)
    assert (per_peer.numbers["equal rows"]["alone"][0] == 16) is good[0]


BAN = Entry(4, "wrong_gradient", "guilty", accused=12, accusers=(0,), peers=(12,), about_step=3)
OF_HONEST = Entry(4, "wrong_gradient", "guilty", accused=2, accusers=(0,), peers=(2,), about_step=3)


@pytest.mark.parametrize(
    ("cpu", "device", "good"),
    [
        ([BAN], [BAN], True),
        ([BAN], [Entry(**{**BAN.fields(), "evidence": "other bytes"})], True),
        ([BAN], [], False),
        ([OF_HONEST], [OF_HONEST], False),
    ],
)
def test_verdicts_that_differ_or_remove_an_honest_peer_are_found(
    monkeypatch: pytest.MonkeyPatch, cpu: list[Entry], device: list[Entry], good: bool
) -> None:
    made = iter((cpu, device))

    class Training(ledgers.Training):
        def __init__(self, *_: object) -> None:
            self.params, self.entries, self.seconds = torch.ones(2), next(made), []

        def step(self) -> None:
            self.seconds.append(0.1)

    monkeypatch.setattr(ledgers, "Training", Training)
    row = ledgers.compared("sign_flip", "batched", Setting("cpu", True, time.perf_counter() + 60))
    assert row.good is good
    assert ("honest peers removed: 2" in row.found) is (cpu == [OF_HONEST])


def test_kernels_and_copies_are_counted_in_a_trace() -> None:
    kernels = [
        {"cat": "kernel", "name": name, "dur": spent} for name, spent in (("a", 1500.0), ("b", 500), ("a", 1000))
    ]
    copy = {"cat": "gpu_memcpy", "name": "DtoH", "dur": 9, "args": {"bytes": 2_000_000}}
    rows = list(
        summary("it", [*kernels, copy, copy, {"cat": "cpu_op", "name": "a", "dur": 7}, {"name": "no category"}])
    )
    assert [row.found for row in rows] == ["3, 3.0 ms busy; a 2.50; b 0.50", "2 x DtoH, 4.0 MB"]
    assert rows[0].numbers["kernels"] == 3 and rows[1].numbers == {"DtoH": {"copies": 2, "bytes": 4_000_000}}
