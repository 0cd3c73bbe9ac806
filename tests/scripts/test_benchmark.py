"""The benchmark: its arithmetic on cases known by hand, and a page that follows from the JSON files alone."""

from __future__ import annotations

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from btard.aggregation import AGGREGATORS, clip_residual
from scripts.benchmark import SECTIONS, main, tables_of
from scripts.benchmarks.libraries import OTHERS, rules_of
from scripts.benchmarks.measure import fit, interleaved, memory, ratio, slope
from scripts.benchmarks.page import Aim
from scripts.benchmarks.scale import aims
from scripts.benchmarks.step import all_reduce
from scripts.benchmarks.textbook import textbook_clip, textbook_count

ROOT = Path(__file__).resolve().parents[2]


def test_the_slope_is_the_exponent_of_the_upper_half() -> None:
    sizes = [1, 2, 4, 8, 16, 32]
    assert slope(sizes, [3 * size**2 for size in sizes]) == pytest.approx(2)
    assert slope(sizes, [100, 50, 7, *(size**1.5 for size in (8, 16, 32))]) == pytest.approx(1.5)
    assert slope([10, 100], [5, 50]) == pytest.approx(1)


def test_a_fit_recovers_the_coefficients_that_made_the_values() -> None:
    d, n = [1e3, 1e3, 1e3, 1e4, 1e5], [4.0, 16.0, 64.0, 16.0, 16.0]
    basis = {"c0": [1.0] * 5, "c1": d, "c2": [count**2 for count in n]}
    found = fit(basis, [0.5 + 2e-4 * size + 3e-3 * count**2 for size, count in zip(d, n, strict=True)])
    assert found["coefficients"] == pytest.approx({"c0": 0.5, "c1": 2e-4, "c2": 3e-3})
    assert found["largest error"] < 1e-9


def test_a_fit_leaves_out_what_would_be_negative() -> None:
    n = [1.0, 2.0, 3.0, 4.0]
    found = fit({"one": [1.0] * 4, "n": n}, [count**2 for count in n])
    assert found["coefficients"]["one"] == 0
    assert found["coefficients"]["n"] > 0
    assert found["largest error"] > 0.1


def rows_on_a_line() -> torch.Tensor:
    """-1, 1 and 10 with tau 1: from 0, the distance to the fixed point 1 shrinks to two thirds in each iteration.

    Beyond 0 the rows -1 and 10 pull with 1 each, against each other; the row 1 pulls with what is left, e. So an
    iteration moves by e / 3, which is also the residual: more than half of the rows are at least tau away.
    """
    return torch.tensor([[-1.0], [1.0], [10.0]], dtype=torch.float64)


@pytest.mark.parametrize(("residual", "iterations"), [(0.3, 1), (0.2, 2), (1e-3, 15)])
def test_textbook_iterations_are_counted_as_by_hand(residual: float, iterations: int) -> None:
    x = rows_on_a_line().numpy()
    count = textbook_count(x @ x.T, 1.0, residual, 1_000)
    assert (count.iterations, count.extrapolated) == (iterations, False)
    assert count.residuals == pytest.approx([(2 / 3) ** k / 3 for k in range(21)])


def test_a_count_beyond_the_limit_follows_from_the_rate() -> None:
    x = rows_on_a_line().numpy()
    count = textbook_count(x @ x.T, 1.0, 1e-6, 12)
    assert count.extrapolated
    assert count.iterations == pytest.approx(math.log(3e-6) / math.log(2 / 3))


def test_far_rows_that_are_not_clipped_need_one_textbook_iteration() -> None:
    x = np.array([[1.0], [2.0], [6.0]])
    assert textbook_count(x @ x.T, 100.0, 1e-6, 100).iterations == 1


def test_the_textbook_on_the_data_is_the_textbook_in_gram_space() -> None:
    assert textbook_clip(rows_on_a_line(), 1.0, 3).item() == pytest.approx(1 - (2 / 3) ** 3)
    x = torch.randn(16, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:7] *= -30
    residuals = textbook_count((x @ x.T).numpy(), 5.0, 1e-12, 30).residuals
    for steps in (0, 1, 20):
        assert clip_residual(x, textbook_clip(x, 5.0, steps), 5.0) == pytest.approx(residuals[steps], rel=1e-6)


def test_variants_take_turns_and_the_first_round_does_not_count() -> None:
    calls: list[str] = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert [len(spent) for spent in times.values()] == [2, 2]


def test_what_has_used_up_its_patience_is_not_repeated() -> None:
    times = interleaved({"slow": lambda: time.sleep(0.05), "fast": lambda: None}, 3, patience={"slow": 0.04})
    assert [len(spent) for spent in times.values()] == [1, 3]
    assert times["slow"][0] >= 0.05


def test_ratios_name_their_spread() -> None:
    assert ratio([2.0, 6.0, 4.0], [1.0, 2.0, 9.0]) == "2.0 (1.0 to 3.0)"
    assert ratio([3.0], [2.0], 2) == "1.50 (once)"


def test_an_aim_is_kept_on_the_right_side_of_its_bound() -> None:
    assert Aim("reads", 10, 7.3).kept and not Aim("reads", 10, 10.1).kept
    assert Aim("speed", 10, 12.0, least=True).kept and not Aim("speed", 10, 9.0, least=True).kept


def test_memory_of_the_process_is_seen() -> None:
    before = memory("RssAnon")  # of VmRSS the system may take pages of files back at any time
    block = np.ones(8_000_000)
    assert memory("RssAnon") - before > 0.9 * block.nbytes
    now = memory("VmRSS")
    assert memory("VmHWM") >= now


def test_all_reduce_is_the_mean() -> None:
    rows = torch.randn(5, 23, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(all_reduce(rows), rows.mean(dim=0))


@pytest.mark.parametrize("other", OTHERS)
def test_other_libraries_are_called_for_the_rule_of_that_name(other: str) -> None:
    rules = rules_of(other, 3, 2.0)
    if isinstance(rules, str):
        pytest.skip(f"{other}: {rules}")
    x = torch.randn(15, 40, generator=torch.Generator().manual_seed(2))
    for name in {"mean", "coordinate_median", "trimmed_mean", "krum", "multi_krum"} & rules.keys():
        assert torch.allclose(rules[name](x), AGGREGATORS[name](x, byzantine=3), atol=1e-5), name
    if "centered_clip" in rules:
        assert clip_residual(x, rules["centered_clip"](x), 2.0) < 0.1


def test_a_library_that_is_not_there_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name}", name="seaborn" if name == "byzfl" else "byzpy")

    monkeypatch.setattr(importlib, "import_module", missing)
    assert rules_of("byzpy", 3, 1.0) == "not installed"
    assert rules_of("byzfl", 3, 1.0) == "not usable: it needs seaborn"


def test_a_report_of_nothing_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--report", "--out", str(tmp_path)])
    assert f"no measurements in {tmp_path}: run `python -m scripts.benchmark" in capsys.readouterr().err


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `--quick` leaves."""
    out = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "scripts.benchmark", "--quick", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ}, check=False)
    assert done.returncode == 0, done.stderr
    assert f"wrote {out / 'README.md'}".replace("\n", "") in done.stdout.replace("\n", "")
    return out


def content(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(240)
class TestQuickRun:
    def test_the_page_shows_what_the_json_holds(self, quick: Path) -> None:
        page = (quick / "README.md").read_text()
        for name in SECTIONS:
            about, tables = content(quick, name)["about"], tables_of(name, content(quick, name))
            assert f"## {name.capitalize()}\n\n`{about['command']}`" in page
            assert {"hardware", "threads", "versions", "load", "seconds"} <= about.keys()
            assert tables
            for table in tables:
                assert table.markdown() in page
                assert table.rows
                assert {len(row) for row in table.rows} == {len(table.columns)}
        assert "### Aims" not in page
        assert page.count("Tiny sizes (`--quick`)") == len(SECTIONS)

    def test_the_page_is_drawn_again_from_the_json_alone(self, quick: Path, tmp_path: Path) -> None:
        for name in SECTIONS:
            shutil.copy(quick / f"{name}.json", tmp_path)
        main(["--report", "--out", str(tmp_path)])
        assert (tmp_path / "README.md").read_text() == (quick / "README.md").read_text()

    def test_aims_are_held_against_whole_runs(self, quick: Path, tmp_path: Path) -> None:
        for name in SECTIONS:
            whole = content(quick, name)
            whole["about"]["quick"] = False
            (tmp_path / f"{name}.json").write_text(json.dumps(whole))
        main(["--report", "--out", str(tmp_path)])
        page = (tmp_path / "README.md").read_text()
        assert "### Aims" in page
        assert (page.count("| at most "), page.count("| at least ")) == (8, 1)

    def test_sections_that_were_not_measured_are_not_on_the_page(self, quick: Path, tmp_path: Path) -> None:
        shutil.copy(quick / "scale.json", tmp_path)
        main(["--report", "--out", str(tmp_path)])
        page = (tmp_path / "README.md").read_text()
        assert [line for line in page.splitlines() if line.startswith("## ")] == ["## Scale"]

    def test_the_numbers_on_the_page_are_those_of_the_json(self, quick: Path) -> None:
        changed = content(quick, "aggregation")
        case = changed["results"]["rules 16x4000 honest"]
        case["seconds"] = {"x.sum()": [2.0, 1.0, 3.0], "centered_clip": [14.0, 15.0, 16.0]}
        row = next(r for t in tables_of("aggregation", changed) for r in t.rows if r[0] == "centered_clip")
        assert row[1] == "7.5 (7.0 to 8.0)"

        changed = content(quick, "step")
        case = changed["results"]["resnet 4"]
        case["phases"] = {way: [{"gradients": 8.0, "commit": 1.0, "part": 0.6}] for way in case["phases"]}
        changed["results"]["cpu 1000 hashed"]["seconds"] = [0.01, 0.04, 0.03]
        tables = tables_of("step", changed)
        assert tables[0].rows[0][2:4] == ["8.000", "20.0 (once)"]
        assert list(tables[1].rows[0])[1:] == ["30.0", "10.0", "40.0"]
        assert list(tables[2].rows[0]) == ["commit", "12.5 (once)", "12.5 (once)"]

        changed = content(quick, "scale")
        for name, result in changed["results"].items():
            if name.startswith("driver memory"):
                result.update(n=16, d=1_000_000, memory=120_000_000)
            if name.startswith("training memory"):
                result.update(memory=36_000_000)
        assert list(tables_of("scale", changed)[-1].rows[0])[1:] == ["64.0", "36.0", "120.0", "1.20"]
        assert [(aim.measured, aim.kept) for aim in aims(changed["results"])] == [(1.2, True)]

    def test_the_processes_and_the_simulator_have_run(self, quick: Path) -> None:
        speeds = content(quick, "simulator")["results"]["processes 0"]["steps_per_second"]
        assert speeds.keys() == {"one process", "a process per peer"}
        assert all(min(values) > 0 for values in speeds.values())
        beside = content(quick, "simulator")["results"]["ddp 4"]["seconds"]
        assert beside.keys() == {"ddp", "btard"}
        assert all(min(values) > 0 for values in beside.values())
