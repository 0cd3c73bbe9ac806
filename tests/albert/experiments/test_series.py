"""A series runs what is not finished, once; where its swarms run is another matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from albert.experiments.__main__ import main
from albert.experiments.grid import BASELINE, Cell, Grid
from albert.experiments.results import is_finished
from albert.experiments.series import outcome, print_plan, run_series
from btard.harness.typed_yaml import ConfigError
from btard.swarm.checkpoint import checkpoint_before
from btard.swarm.local import COORDINATOR
from tests.albert.experiments.conftest import MakeGrid, write_swarm


class Written:
    """Swarms that are written down at once, but for those that fail, and those at which the user interrupts."""

    own_display = False

    def __init__(self, fails: str = "", interrupted: str = "") -> None:
        self.fails, self.interrupted = fails, interrupted
        self.trained: list[str] = []

    def train(self, cell: Cell, out: Path, listen: Callable[[int], None]) -> str | None:
        self.trained.append(cell.name)
        listen(cell.config.steps - 1)
        if cell.name == self.interrupted:
            raise KeyboardInterrupt
        if cell.name == self.fails:
            return "its coordinator fell over"
        write_swarm(cell, out)
        return None

    def put_data(self, folder: Path) -> None: ...

    def describe(self, grid: Grid, out: Path) -> None: ...

    def check(self, cells: object) -> None: ...

    def clean_up(self, grid: Grid, out: Path) -> None: ...


def names(grid: Grid) -> list[str]:
    return [cell.name for cell in grid.cells]


def test_the_baseline_is_first_and_every_swarm_runs_once(
    grid: Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Written()
    assert run_series(grid, tmp_path / "out", place) == {}
    assert place.trained == names(grid) and place.trained[0] == BASELINE
    assert run_series(grid, tmp_path / "out", place) == {}
    assert place.trained == names(grid)
    shown = capsys.readouterr()
    assert "sign-flip-from-20-btard-seed-0: loss 7.05, 2 of 2 attackers banned by step 25" in shown.out
    assert "420 of 420 steps" in shown.err


def test_an_interrupted_series_goes_on_with_the_swarm_at_which_it_was(grid: Grid, tmp_path: Path) -> None:
    third = names(grid)[3]
    with pytest.raises(KeyboardInterrupt):
        run_series(grid, tmp_path / "out", Written(interrupted=third), show=False)
    again = Written()
    run_series(grid, tmp_path / "out", again, show=False)
    assert again.trained == names(grid)[3:]


def test_a_swarm_that_fails_stops_none_but_those_that_need_it(grid: Grid, tmp_path: Path) -> None:
    second = names(grid)[1]
    place = Written(fails=second)
    assert run_series(grid, tmp_path / "a", place, show=False) == {second: "its coordinator fell over"}
    assert place.trained == names(grid)
    place = Written(fails=BASELINE)
    failed = run_series(grid, tmp_path / "b", place, show=False)
    assert place.trained == [BASELINE] and set(failed) == set(names(grid))
    assert failed[second] == "not begun, as it starts from the baseline, which failed"


def test_the_plan_says_what_there_is_to_do_and_how_long_it_takes(
    grid: Grid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_plan(grid, tmp_path)
    text = capsys.readouterr().out
    assert "sign flip against BTARD" in text and "0 of 2" in text
    assert "13 swarms, 13 to run, 420 steps, one swarm at a time\n" in text
    for cell in grid.cells[:3]:
        write_swarm(cell, tmp_path)
    print_plan(grid, tmp_path)
    text = capsys.readouterr().out
    assert "1 of 2" in text
    assert "13 swarms, 10 to run, 300 steps, one swarm at a time, about 2 min by those that are finished" in text


def test_an_attack_begins_from_the_newest_checkpoint_that_is_old_enough(grid: Grid, tmp_path: Path) -> None:
    assert grid.baseline is not None
    write_swarm(grid.baseline, tmp_path)
    place = tmp_path / BASELINE / COORDINATOR
    assert checkpoint_before(place, 35).name == "step-00000030.safetensors"
    assert checkpoint_before(place, 40).name == "step-00000040.safetensors"
    message = "expected a checkpoint of step 9 or before, found step-00000010, step-00000020, step-00000030; lower"
    with pytest.raises(ConfigError, match=message):
        checkpoint_before(place, 9)
    with pytest.raises(ConfigError, match="found none"):
        checkpoint_before(tmp_path / "elsewhere", 9)


def test_the_outcome_of_a_swarm_in_one_line(grid: Grid, tmp_path: Path) -> None:
    cells = {cell.name: cell for cell in grid.cells}
    for name, honest in (("ipm-from-20-btard-seed-0", 0), ("ipm-from-20-mean-seed-0", None), (BASELINE, None)):
        write_swarm(cells[name], tmp_path, honest=honest)
        assert is_finished(cells[name], tmp_path)
    defended = outcome(cells["ipm-from-20-btard-seed-0"], tmp_path)
    assert defended == "loss 7.05, 2 of 2 attackers banned by step 25, 1 honest peers removed"
    assert outcome(cells["ipm-from-20-mean-seed-0"], tmp_path) == "loss 48.00, 0 of 2 attackers banned"
    assert outcome(cells[BASELINE], tmp_path) == "loss 6.05"


def test_missing_data_are_found_before_any_swarm_starts(
    make_grid: MakeGrid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(make_grid()), "--out", str(tmp_path / "out")])
    assert caught.value.code == 2 and "nowhere: expected a folder of prepared data" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_plans_and_tells_mistakes_in_one_line(
    make_grid: MakeGrid, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(make_grid()), "--out", str(tmp_path / "out"), "--plan"]
    assert main([*words, "--only", "IPM", "--peers", "7"]) == 0
    assert "7 swarms, 7 to run" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    for wrong, message in ((["--only", "ipm"], "no attack 'ipm'"), (["--peeers", "7"], "peeers")):
        with pytest.raises(SystemExit) as caught:
            main([*words, *wrong])
        assert caught.value.code == 2 and message in capsys.readouterr().err
