"""A sweep: its runs are those that `resnet.train` makes one by one, whichever of them are there already."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from btard.attacks.registry import ATTACKS
from btard.harness.run_folder import RunFolderError, read_summary
from btard.harness.settings import config_text
from resnet import data
from resnet.data import load_dataset
from resnet.experiments import warmup
from resnet.experiments.grid import read_grid
from resnet.experiments.outcomes import noted_digest, read_results
from resnet.experiments.sweep import sweep
from resnet.experiments.warmup import branch, extend, fork_step, warm_up_name, warm_up_of
from resnet.sweep import main
from resnet.training import knowing, train
from tests.resnet.small_grid import DEFENCES, SETTINGS, files, grid_of, write_grid


@pytest.fixture(scope="module", autouse=True)
def _digits_are_read_once() -> Iterator[None]:
    """They are the same in each of the many runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_digits", functools.cache(data._digits))
        yield


@pytest.fixture(scope="module")
def warm_ups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the attacks of the next test find the warm-ups that they share, as those of a sweep do."""
    return tmp_path_factory.mktemp("warm-ups")


@pytest.mark.parametrize("name", ATTACKS)
def test_a_run_that_leaves_a_warm_up_is_the_run_that_was_trained_alone(
    name: str, tmp_path: Path, warm_ups: Path
) -> None:
    attack = {"attack.name": name} | ({"attack.delay": 3} if name == "delayed_gradient" else {})
    defences = DEFENCES if ATTACKS[name].level == "gradient" else {"BTARD": DEFENCES["BTARD"]}
    for cell in grid_of({name: attack}, defences).cells:
        step = fork_step(cell.config)
        assert step == (2 if name == "delayed_gradient" else 5 - (ATTACKS[name].level == "protocol"))
        warm_up = warm_ups / warm_up_name(warm_up_of(cell.config))
        for left in (2, 4, 5, 9):  # it has gone on before it is left
            extend(warm_up_of(cell.config), warm_up, left)
        branch(cell.config, tmp_path / cell.defence / "branch", warm_up, step)
        train(cell.config, tmp_path / cell.defence / "branch", progress=False, events=False)
        train(cell.config, tmp_path / cell.defence / "alone", progress=False, events=False)
        one, other = (files(tmp_path / cell.defence / which) for which in ("branch", "alone"))
        # The checkpoint at the fork is an extra of the branch.
        common = one.keys() & other.keys()
        assert all(path.startswith("checkpoints/") for path in one.keys() ^ other.keys())
        assert "checkpoints/step-00000012.safetensors" in common
        assert {path: one[path] for path in common} == {path: other[path] for path in common}


def test_a_sweep_leaves_alone_what_is_finished_and_trains_what_is_new(tmp_path: Path) -> None:
    small = grid_of({"sign flip": {"attack.name": "sign_flip"}}, {"BTARD": {}})
    assert not sweep(small, tmp_path, show=False).failed
    before = files(tmp_path / "runs")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    # A grid that has grown, also by a setting that no run had differed in.
    wider = grid_of(
        {"sign flip": {"attack.name": "sign_flip"}},
        {"BTARD": {}},
        experiments={"all": {}, "two": {"vary": {"protocol.validators": [1, 2]}}},
    )
    assert not sweep(wider, tmp_path, show=False).failed
    after = files(tmp_path / "runs")
    assert before.items() < after.items()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert sum(path.endswith("summary.json") for path in after) == 2
    assert read_grid(tmp_path / "sweep.yaml").text == wider.text


def test_no_run_goes_on_from_a_warm_up_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    common = warm_up_of(grid_of({"no attack": {}}, {"BTARD": {}}).cells[0].config)
    now = warm_up_name(common)
    monkeypatch.setattr(warmup, "PROTOCOL_VERSION", warmup.PROTOCOL_VERSION + 1)
    assert warm_up_name(common) != now


def test_one_run_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path / "grid.yaml", defences={"BTARD": {}})
    stranger = tmp_path / "out/runs/btard/alie/seed-0/notes.txt"
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sweep.yaml").write_text("")
    stranger.parent.mkdir(parents=True)
    stranger.write_text("mine")
    assert main([str(grid), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "btard/alie/seed-0: RunFolderError" in said.err and "notes.txt" in said.err
    lines = (said.out + said.err).splitlines()  # it is said when it happens, not hours later
    when = {line.partition("/seed-0:")[0]: number for number, line in reversed(list(enumerate(lines)))}
    assert when["failed: btard/alie"] < when["btard/no-attack"]
    assert stranger.read_text() == "mine"
    finished = {path.parent.parent.name for path in (tmp_path / "out/runs").rglob("summary.json")}
    assert finished == {"no-attack", "sign-flip"}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"experiments": {}}, "experiments: expected at least one"),
        ({"attacks": {}}, "attacks: expected at least one"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"experiments": {"e": {"atacks": []}}}, "did you mean attacks?"),
        ({"experiments": {"e": {"attacks": ["ALEI"]}}}, "'ALEI' is not among the file's attacks; did you mean ALIE?"),
        (
            {"experiments": {"e": {"vary": {"protocol.validators": 2}}}},
            "vary.protocol.validators: expected a list of values, got 2",
        ),
        (
            {"experiments": {"e": {"vary": {"protocol.validator": [2]}}}},
            "key protocol.validator; did you mean protocol.validators?",
        ),
        ({"experiments": {"e": {"seeds": ["a"]}}}, "seeds: expected a list of whole numbers"),
        ({"experiments": {"e": {"settings": {"byzantine": 4}}}}, "byzantine must be >= 0 and < peers / 2 = 3.5, got 4"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        ({"base": 3}, "base must be the name of a file"),
        (
            {"defences": {"Krum": {"aggregator.name": "krum"}}, "settings": {**SETTINGS, "peers": 6}},
            "aggregator.name krum",
        ),
        (
            {"attacks": {"A": {"attack.name": "alie"}, "a": {"attack.name": "zero"}}},
            "two different runs would be btard/a/",
        ),
    ],
)
def test_a_mistake_in_a_grid_is_one_line_before_anything_is_trained(
    entries: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path / "grid.yaml", **entries)
    with pytest.raises(SystemExit) as ended:
        main([str(grid), "--out", str(tmp_path / "out")])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.count("\n") == 1 and message in errors
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--out DIR is missing"),
        (["--out", "{out}", "--only", "later"], "no experiment 'later', there are all"),
        (["--out", "{out}", "--peer", "8"], "unknown key --peer"),
        (["--out", "{strange}"], "holds other files (a file) and no sweep"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/a file").touch()
    places = {"out": tmp_path / "out", "strange": tmp_path / "strange"}
    with pytest.raises(SystemExit) as ended:
        main([str(write_grid(tmp_path / "grid.yaml")), *(word.format(**places) for word in words)])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.count("\n") == 1 and message in errors


def test_the_plan_says_what_there_is_to_do_and_trains_nothing(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path / "grid.yaml")
    assert main([str(grid), "--out", str(tmp_path / "out"), "--plan", "--seed", "3", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "6 different runs, 6 to train, 4 parts of warm-ups" in " ".join(said.split())
    assert not (tmp_path / "out").exists()


def test_a_plan_downloads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data.name", "cifar10", "--data.path", str(tmp_path), "--plan"]
    assert main([str(write_grid(tmp_path / "grid.yaml")), "--out", str(tmp_path / "out"), *words]) == 0
    assert "how long is not known before the data are there" in " ".join(capsys.readouterr().out.split())


def test_the_command_line_changes_every_run_and_the_folder_alone_goes_on(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid.yaml", defences={"BTARD": {}}, experiments={"e": {"attacks": ["sign flip"]}})
    out = tmp_path / "out"
    assert main([str(grid), "--out", str(out), "--steps", "9", "--data.label", "8 x 8"]) == 0
    summary = read_summary(out / "runs/btard/sign-flip/seed-0")
    assert summary is not None and summary["steps"] == 9 and summary["data"] == "8 x 8"
    assert main([str(out)]) == 0  # nothing is left to do, and the folder knows its grid


def test_runs_on_other_data_than_the_rest_are_noticed(tmp_path: Path) -> None:
    grid = grid_of({"no attack": {}, "sign flip": {"attack.name": "sign_flip"}}, {"BTARD": DEFENCES["BTARD"]})
    (tmp_path / "sweep.yaml").write_text(grid.text)
    one, other = (tmp_path / "runs" / cell.name for cell in grid.cells)
    train(grid.cells[0].config, one, progress=False, events=False)
    now = noted_digest(one)
    assert now == load_dataset("digits").digest
    settings = (one / "config.yaml").read_text()
    (one / "config.yaml").write_text(settings.replace(now, "f" * 64))
    with pytest.raises(RunFolderError, match=f"was trained on other data .data.digest f*. than there are now .{now}"):
        sweep(grid, tmp_path, show=False)
    shutil.copytree(one, other)
    text = config_text(knowing(grid.cells[1].config, load_dataset("digits")))
    (other / "config.yaml").write_text(text)
    with pytest.raises(RunFolderError, match="was trained on other data than"):
        read_results(tmp_path, grid)
