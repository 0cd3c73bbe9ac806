"""What a sweep has to do: its grid, the names of its runs, the warm-ups that they share, its division into shares."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from resnet.experiments.grid import parse_grid, read_grid
from resnet.experiments.plan import Branch, Segment, make_plan, shard
from tests.resnet.small_grid import ATTACKS_OF_TWO, grid_of

ROOT = Path(__file__).parents[2]


def test_warm_ups_are_shared_and_come_before_what_needs_them(tmp_path: Path) -> None:
    late = {"all": {}, "late": {"settings": {"attack.start": 8}}}
    plan = make_plan(grid_of(ATTACKS_OF_TWO, experiments=late, seeds=[0, 1]).cells, tmp_path)
    segments = [task for task in plan.tasks if isinstance(task, Segment)]
    # Two defences and two seeds; a start at 5, one at 8, and the last step of the run without attack.
    assert sorted((segment.first, segment.last) for segment in segments) == sorted([(0, 5), (5, 8), (8, 11)] * 4)
    assert len({segment.folder for segment in segments}) == 4
    order = {task: place for place, task in enumerate(plan.tasks)}
    assert all(order[needed] < order[task] for task, needed in plan.needs.items())
    for task in plan.tasks:
        if isinstance(task, Branch):
            needed = plan.needs[task]
            assert isinstance(needed, Segment) and (needed.folder, needed.last) == (task.warm_up, task.fork)
    # Of each experiment, the first seed's picture is whole before the second one's begins.
    places = [(task.cell.config.attack.start == 8, task.cell.seed) for task in plan.tasks if isinstance(task, Branch)]
    assert [place for place in places if place[0]] == sorted(place for place in places if place[0])
    assert [place for place in places if not place[0]] == sorted(place for place in places if not place[0])


def test_a_warm_up_whose_runs_are_finished_is_not_trained_again(tmp_path: Path) -> None:
    grid = grid_of(ATTACKS_OF_TWO, {"BTARD": {}})
    plan = make_plan(grid.cells, tmp_path)
    for cell in grid.cells[1:]:
        folder = tmp_path / "runs" / cell.name
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text("{}")
    # The run without attack is left, and goes on from what the others left: the whole chain of its warm-up is needed.
    assert [str(task) for task in plan.todo()] == [
        "warm-up btard-auto seed-0 to step 5",
        "warm-up btard-auto seed-0 to step 11",
        "btard/no-attack/seed-0",
    ]
    (tmp_path / "runs/btard/no-attack/seed-0").mkdir(parents=True)
    (tmp_path / "runs/btard/no-attack/seed-0/summary.json").write_text("{}")
    assert plan.todo() == []


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_a_division_and_keep_what_is_common_together(count: int) -> None:
    cells = grid_of(ATTACKS_OF_TWO, seeds=[0, 1, 2]).cells
    shares = [shard(cells, index, count) for index in range(1, count + 1)]
    names = [cell.name for share in shares for cell in share]
    assert sorted(names) == sorted(cell.name for cell in cells) and len(set(names)) == len(names)
    owners = [{(cell.defence, cell.seed) for cell in share} for share in shares]
    assert sum(len(owned) for owned in owners) == len(set.union(*owners)) == 6
    assert max(map(len, shares)) - min(map(len, shares)) <= 3  # no share differs by more than one warm-up's runs


def test_cells_are_named_by_what_differs_from_the_grids_settings() -> None:
    grid = grid_of(
        {"no attack": {}, "ALIE": {"attack.name": "alie"}},
        experiments={
            "a": {},
            "b": {"settings": {"byzantine": 1, "attack.start": 7}, "vary": {"protocol.validators": [1, 2]}},
        },
    )
    assert [cell.name for cell in grid.cells] == [
        "btard/no-attack/seed-0",
        "krum/no-attack/seed-0",
        "btard/alie/seed-0",
        "krum/alie/seed-0",
        "krum/no-attack/byzantine-1/seed-0",
        "btard/alie/start-7_byzantine-1/seed-0",
        "krum/alie/start-7_byzantine-1/seed-0",
        "btard/no-attack/validators-2/seed-0",
        "krum/no-attack/byzantine-1_validators-2/seed-0",
        "btard/alie/start-7_byzantine-1_validators-2/seed-0",
        "krum/alie/start-7_byzantine-1_validators-2/seed-0",
    ]
    quiet = grid.cells[4].config
    assert quiet.byzantine == 0 and quiet.tolerated == 1 and quiet.attack.name is None


@pytest.mark.parametrize("file", ["small.yaml", "paper.yaml", "tiny.yaml"])
def test_grids_that_come_with_the_repository_can_be_read(file: str) -> None:
    grid = read_grid(ROOT / "configs/resnet" / file)
    again = parse_grid(yaml.safe_load(grid.text), "again")
    assert again.text == grid.text
    assert [cell.config for cell in again.cells] == [cell.config for cell in grid.cells]
