"""Reports of sweeps whose run folders were written here: what they say follows from these files by hand."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from btard.harness.packed import pack
from resnet.experiments.export import export
from resnet.experiments.outcomes import read_sweep
from resnet.experiments.plan import Branch, make_plan
from resnet.report import main
from tests.resnet.sweeps import BTARD, STEPS, early, make_grid, read, report, write_sweep

FILES = {
    "report.md", "results.md", "results.csv", "runs.csv", "curves.csv", "survival.md", "survival.csv", "speed.md",
    "claims.csv", "claims.md",
    "survival.png", "survival.svg", "overview.png", "overview.svg", "accuracy-early.png", "accuracy-early.svg",
}  # fmt: skip


@pytest.fixture(scope="module")
def early_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    return write_sweep(tmp_path_factory.mktemp("early") / "s", make_grid(experiments=early()))


@pytest.fixture(scope="module")
def early_report(early_sweep: Path) -> dict[str, bytes]:
    """The files of its report."""
    return report(early_sweep, early_sweep.parent / "report")


def test_equal_files_give_equal_bytes(
    early_sweep: Path, early_report: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert early_report == report(early_sweep, tmp_path / "two")
    assert early_report.keys() == FILES
    assert max(map(len, early_report.values())) < 200_000
    assert b"<text" in early_report["accuracy-early.svg"]  # text that can be searched, not outlines
    said = capsys.readouterr().out
    assert "sign flip" in said and str(tmp_path / "two/report.md") in said


def test_the_report_ties_everything_together(tmp_path: Path) -> None:
    more = {"baselines": {"title": "A server", "about": "Nobody is banned.", "defences": ["mean"]}}
    out = write_sweep(tmp_path / "s", make_grid(experiments=early() | more))
    assert main([str(out)]) == 0
    text = (out / "report/report.md").read_text()
    assert text.startswith("# A test\n\nData: pictures. All 15 runs are finished.\n")
    for link in (
        "overview.png",
        "survival.png",
        "accuracy-early.png",
        "accuracy-baselines.png",
        "runs.csv",
        "speed.md",
    ):
        assert f"({link})" in text and (out / "report" / link).exists()
    assert "Nobody is banned." in text and "torch 2.9.9, Python 3.10.1, device cpu" in text
    tables_of = (out / "report/results.md").read_text()
    assert "| sign flip | BTARD, tau 1 | 2 | 37.5 (37.0 to 38.0) | 39.5 (39.0 to 40.0) | 2.0 |" in tables_of
    assert tables_of.count("| --- |") == 2


def test_an_unfinished_sweep_is_reported_as_far_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_sweep(tmp_path / "s", make_grid(experiments=early()), but="seed-1")
    running = out / "runs/btard-tau-1/alie/seed-1"
    running.mkdir(parents=True)
    (running / "metrics.jsonl").write_text('{"step": 0, "los')
    assert main([str(out)]) == 0
    assert "Unfinished sweep: 6 of 12 runs are finished." in capsys.readouterr().out
    assert "**Unfinished sweep:** 6 of 12 runs are finished." in (out / "report/report.md").read_text()
    assert [row["seeds"] for row in csv.DictReader((out / "report/results.csv").open())] == ["1"] * 6


def test_a_report_says_of_how_many_runs_the_speed_is_known(
    early_sweep: Path, early_report: dict[str, bytes], tmp_path: Path
) -> None:
    assert b"Measured in" not in early_report["speed.md"]
    out = Path(shutil.copytree(early_sweep, tmp_path / "s"))
    (out / "runs/btard-tau-1/alie/seed-0/timings.jsonl").unlink()
    assert b"Measured in 11 of 12 runs." in report(out, tmp_path / "some")["speed.md"]


def test_only_some_experiments(tmp_path: Path) -> None:
    both = early() | {"quick": {"attacks": ["ALIE"], "defences": ["BTARD, tau 1"], "settings": {"attack.every": 3}}}
    out = write_sweep(tmp_path / "s", make_grid(experiments=both))
    files = report(out, tmp_path / "r", "--only", "quick")
    assert "accuracy-quick.png" in files and "accuracy-early.png" not in files
    (row,) = csv.DictReader(files["results.csv"].decode().splitlines())
    assert row["accuracy_without_attack_mean"] == "0.4"  # from a run of the other experiment


def test_an_export_gives_the_same_report_and_says_nothing_about_the_machine(tmp_path: Path) -> None:
    both = early() | {"m": {"vary": {"protocol.validators": [1, 2]}, "defences": ["BTARD, tau 1"]}}
    out = write_sweep(tmp_path / "s", make_grid(experiments=both), but="alie/seed-1")
    whole = report(out, tmp_path / "one", "--export", str(tmp_path / "kept"))
    assert sorted(entry.name for entry in (tmp_path / "kept").iterdir()) == ["runs.zip", "speeds.json", "sweep.yaml"]
    kept = zipfile.ZipFile(tmp_path / "kept/runs.zip")
    files = {"config.yaml", "summary.json", "ledger.jsonl", "metrics.jsonl"}
    assert sorted(kept.namelist()) == sorted(
        f"{folder.parent.relative_to(out / 'runs')}/{file}" for folder in out.rglob("summary.json") for file in files
    )
    contents = [*map(kept.read, kept.namelist()), (tmp_path / "kept/sweep.yaml").read_bytes()]
    assert not any(b"somebody" in content for content in contents)
    settings = yaml.safe_load(kept.read("btard-tau-1/alie/seed-0/config.yaml"))
    assert settings["data"]["path"] == "pictures.tar"
    lines = kept.read("btard-tau-1/alie/seed-0/metrics.jsonl").splitlines()
    assert [json.loads(text)["step"] + 1 for text in lines] == list(STEPS)
    assert report(tmp_path / "kept", tmp_path / "two") == whole
    # An export of the export is the same to the byte.
    assert report(tmp_path / "kept", tmp_path / "three", "--export", str(tmp_path / "again")) == whole
    assert (tmp_path / "again/runs.zip").read_bytes() == (tmp_path / "kept/runs.zip").read_bytes()
    # Once more over the old one, which loses what is no longer there.
    shutil.rmtree(out / "runs/btard-tau-1/alie/seed-0")
    export(read(out, read_sweep(out)), out, tmp_path / "kept")
    assert "btard-tau-1/alie/seed-0/config.yaml" not in zipfile.ZipFile(tmp_path / "kept/runs.zip").namelist()


def test_a_sweep_over_an_export_has_only_the_missing_runs_to_train(tmp_path: Path) -> None:
    out = write_sweep(tmp_path / "s", make_grid(experiments=early()), but="btard-tau-1/alie/seed-1")
    export(read(out, read_sweep(out)), out, tmp_path / "kept")
    plan = make_plan(read_sweep(tmp_path / "kept").cells, tmp_path / "kept")
    assert [task.cell.name for task in plan.todo() if isinstance(task, Branch)] == ["btard-tau-1/alie/seed-1"]


def test_a_damaged_archive_and_damaged_settings_in_it_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = write_sweep(tmp_path / "s", make_grid(experiments=early()))
    kept = tmp_path / "kept"
    export(read(out, read_sweep(out)), out, kept)
    whole = (kept / "runs.zip").read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    pack(kept / "other.zip", {"btard-tau-1/alie/seed-0/summary.json": b"{}"})
    for content, message in (
        (whole[:-30], "runs.zip: expected a zip archive of runs, cannot read it (File is not a zip file)"),
        (bytes(flipped), "damaged"),
        ((kept / "other.zip").read_bytes(), "runs.zip/btard-tau-1/alie/seed-0/config.yaml: cannot be read"),
    ):
        (kept / "runs.zip").write_bytes(content)
        with pytest.raises(SystemExit):
            main([str(kept)])
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and message in errors


def damage(out: Path, file: str, change: Callable[[str], str]) -> None:
    path = out / "runs/btard-tau-1/alie/seed-0" / file
    path.write_text(change(path.read_text()))


MISTAKES: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "no sweep": (lambda out: (out / "sweep.yaml").unlink(), [], "found no sweep.yaml in it"),
    "no experiment": (lambda out: None, ["--only", "later"], "no experiment 'later', there are early"),
    "no run": (lambda out: shutil.rmtree(out / "runs"), [], "none of 12 runs is finished"),
    "half a summary": (lambda out: damage(out, "summary.json", lambda t: t[:50]), [], "summary.json: damaged ("),
    "a list": (lambda out: damage(out, "summary.json", lambda t: "[]"), [], "summary.json: expected a JSON object"),
    "no bans": (lambda out: damage(out, "summary.json", lambda t: t.replace('"bans"', '"b"')), [], "bans is None"),
    "a strange ban": (
        lambda out: damage(out, "summary.json", lambda t: t.replace('"step"', '"s"', 1)),
        [],
        "a ban without step, peer, kind or side",
    ),
    "cut metrics": (
        lambda out: damage(out, "metrics.jsonl", lambda t: t[: len(t) // 2]),
        [],
        "metrics.jsonl: damaged around step 25: no accuracy as configured; delete the run's folder",
    ),
    "another end": (
        lambda out: damage(out, "summary.json", lambda t: t.replace('accuracy": 0.38', 'accuracy": 0.5')),
        [],
        "summary.json and metrics.jsonl differ in the last accuracy",
    ),
    "no number": (
        lambda out: damage(out, "metrics.jsonl", lambda t: t.replace('accuracy": 0.38', 'accuracy": "x"')),
        [],
        "metrics.jsonl: damaged: an accuracy is no number",
    ),
    "other settings": (
        lambda out: damage(out, "config.yaml", lambda t: t.replace("steps: 40", "steps: 41")),
        [],
        "config.yaml: has steps 41, where sweep.yaml says 40",
    ),
    "no settings": (
        lambda out: (out / "runs/btard-tau-1/alie/seed-0/config.yaml").unlink(),
        [],
        "config.yaml: cannot be read",
    ),
    "broken speeds": (lambda out: (out / "speeds.json").write_text("{"), [], "speeds.json: damaged"),
    "export onto itself": (lambda out: None, ["--export", "{out}"], "is the sweep itself; choose another --export"),
    "export onto others": (lambda out: None, ["--export", "{out}/runs"], "holds other files (btard-tau-1) and no"),
    "export onto a file": (
        lambda out: None,
        ["--export", "{out}/sweep.yaml"],
        "sweep.yaml is no folder; choose another place",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil, words, message = MISTAKES[name]
    out = write_sweep(tmp_path / "s", make_grid(experiments=early()))
    spoil(out)
    with pytest.raises(SystemExit) as ended:
        main([str(out), *(word.format(out=out) for word in words)])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.count("\n") == 1 and message in errors
    assert not (out / "report").exists()


def test_runs_that_are_named_after_their_data_are_not_exported(tmp_path: Path) -> None:
    places = {"vary": {"data.path": ["/a/one.tar", "/b/two.tar"]}, "defences": BTARD[:1], "attacks": ["no attack"]}
    out = write_sweep(tmp_path / "s", make_grid(experiments={"e": places}))
    with pytest.raises(SystemExit):
        main([str(out), "--export", str(tmp_path / "kept")])
    assert not (tmp_path / "kept").exists()
