"""Which swarms a series has follows from its file alone, and mistakes in it are told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from albert.config import Config
from albert.experiments.grid import Grid, read_grid
from btard.harness.typed_yaml import ConfigError, read_words
from tests.albert.experiments.conftest import MakeGrid

CONFIGS = Path(__file__).parents[3] / "configs/albert/experiments"


def test_every_attack_meets_every_defence_from_every_start_with_the_seeds_of_the_defence(grid: Grid) -> None:
    assert grid.baseline is not None and grid.cells[0] is grid.baseline
    expected = {
        f"{attack}-from-{start}-{defence}-seed-{seed}"
        for attack in ("sign-flip", "ipm")
        for start in (20, 40)
        for defence, seed in (("btard", 0), ("btard", 1), ("mean", 0))
    }
    assert {cell.name for cell in grid.attacks} == expected
    assert len(grid.attacks) == len(expected)


def test_the_baseline_goes_to_the_end_of_the_last_attack_and_has_none_itself(grid: Grid) -> None:
    assert grid.baseline is not None
    config = grid.baseline.config
    assert (config.steps, config.attack.name, config.byzantine) == (60, None, 2)
    assert grid.baseline.start_by is None and grid.baseline.steps == 60


def test_an_attack_begins_from_a_checkpoint_before_its_start_and_ends_after_it(grid: Grid) -> None:
    cells = {cell.name: cell for cell in grid.cells}
    cell = cells["ipm-from-40-mean-seed-0"]
    assert (cell.start_by, cell.steps) == (35, 30)  # the checkpoint of step 30
    config = cell.config
    assert (config.steps, config.attack.start, config.attack.options) == (60, 40, {"epsilon": 0.6})
    assert (config.protocol.tau, config.protocol.validators) == (float("inf"), 0)
    assert cells["ipm-from-40-btard-seed-1"].config.seed == 1


def test_no_two_swarms_have_the_same_run_id(grid: Grid) -> None:
    assert len({cell.config.run_id for cell in grid.cells}) == len(grid.cells)
    assert all(cell.config.run_id == f"small/{cell.name}" for cell in grid.cells)


def test_an_early_attack_and_one_without_a_baseline_begin_from_scratch(make_grid: MakeGrid) -> None:
    early = read_grid(make_grid(starts=[5, 20]))
    assert {cell.config.attack.start: cell.start_by for cell in early.attacks} == {5: None, 20: 15}
    alone = read_grid(make_grid(baseline="null"))
    assert alone.baseline is None and not [cell for cell in alone.cells if cell.start_by is not None]


def test_changes_from_the_command_line_are_in_every_swarm(make_grid: MakeGrid) -> None:
    grid = read_grid(make_grid(), read_words(["--peers", "7", "--data.path", "there"], Config))
    assert {(cell.config.peers, cell.config.data.path) for cell in grid.cells} == {(7, "there")}


def test_only_some_attacks(grid: Grid) -> None:
    some = grid.only(["IPM"], "command line")
    assert {cell.attack for cell in some.attacks} == {"IPM"} and some.baseline is grid.baseline
    with pytest.raises(ConfigError, match="command line: no attack 'ipm', there are sign flip, IPM"):
        grid.only(["ipm"], "command line")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title:", "titel:", "unknown key 'titel'"),
        ("base: base.yaml", "base: 3", "base: expected the name of a file beside it, got 3"),
        ("base: base.yaml", "base: none.yaml", "none.yaml"),
        ("attack.name: sign_flip", "attack.name: sign_flop", "sign_flop"),
        ("attack.name: sign_flip", "attack.every: 2", "attacks.sign flip: attack.name is missing"),
        ("baseline: BTARD", "baseline: BTRAD", "baseline: 'BTRAD' is no defence"),
        ("starts: [20, 40]", "starts: []", "starts: expected a list of whole numbers, got []"),
        ("starts: [20, 40]", "starts: [soon]", "starts: expected a list of whole numbers, got ['soon']"),
        ("starts: [20, 40]", "starts: [12]", "the first checkpoint is at step 10 (checkpoint_every), too late"),
        ("lead: 5", "lead: 0", "lead: expected a whole number from 1 on, got 0"),
        ("after: 20", "after: long", "after: expected a whole number from 1 on, got 'long'"),
        ("mean: [0]", "means: [0]", "seeds: unknown key 'means'"),
        (", mean: [0]", "", "seeds.mean: expected a list of whole numbers, got None"),
        ("checkpoint_every: 10", "checkpoint_evry: 10", "checkpoint_evry"),
        ("checkpoint_every: 10", "byzantine: 3", "byzantine must be >= 0 and < peers / 2 = 2.5, got 3"),
        ("attacks:\n", "attacks:\n  sign FLIP: {attack.name: sign_flip}\n", "two swarms would be sign-flip-from-20"),
    ],
)
def test_mistakes_are_told_in_one_line(make_grid: MakeGrid, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_grid(make_grid((old, new)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_series_of_the_repository_can_be_read(file: Path) -> None:
    assert read_grid(file).cells


def test_the_papers_series_is_the_papers() -> None:
    grid = read_grid(CONFIGS / "paper.yaml")
    assert grid.baseline is not None and grid.baseline.config.checkpoint_every == 50
    assert {cell.config.attack.name for cell in grid.attacks} == {"sign_flip", "label_flip", "random_direction"}
    begins = {cell.config.attack.start: cell.start_by for cell in grid.attacks}
    assert {start: by // 50 * 50 for start, by in begins.items() if by is not None} == {1000: 950, 5000: 4950}
    assert {cell.config.steps - cell.config.attack.start for cell in grid.attacks} == {250}
    assert {(cell.config.peers, cell.config.byzantine) for cell in grid.cells} == {(16, 7)}
