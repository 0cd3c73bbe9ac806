"""How long attackers stay: equal coins, the law, and its band."""

from __future__ import annotations

import csv
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from btard.protocol.law import survival_law
from resnet.experiments import survival, tables
from resnet.experiments.grid import Grid
from resnet.experiments.plots import survival_figure
from resnet.experiments.survival import collapse, distribution_of_sum, two_sided
from resnet.report import main
from resnet.training import train
from tests.resnet.sweeps import (
    BAN_STEPS,
    BTARD,
    SETTINGS,
    attackers_go,
    by_name,
    finish,
    line,
    make_grid,
    read,
    write_sweep,
)


def law_of_last_ban(n: int, b: int, m: int, start: int, horizon: int) -> np.ndarray:
    gone = survival_law(n, b, m, horizon, start=start)[:, 0]
    return np.append(np.diff(gone, prepend=0), 1 - gone[-1])


def test_the_p_value_is_that_of_all_outcomes_counted_one_by_one() -> None:
    laws = [law_of_last_ban(5, 2, 1, start, 9) for start in (0, 3, 9)]
    chances: dict[int, float] = {}
    for outcome in itertools.product(range(10), repeat=3):
        chance = float(np.prod([law[last] for law, last in zip(laws, outcome, strict=True)]))
        chances[sum(outcome)] = chances.get(sum(outcome), 0) + chance
    distribution = distribution_of_sum(laws)
    assert distribution == pytest.approx([chances[total] for total in range(28)])
    for observed in (0, 4, 13, 22, 27):
        below = sum(chance for total, chance in chances.items() if total <= observed)
        above = sum(chance for total, chance in chances.items() if total >= observed)
        assert two_sided(distribution, observed) == pytest.approx(min(1, 2 * min(below, above)))


def survival_grid(**entries: Any) -> Grid:
    experiments = {
        "e": {"defences": BTARD, "attacks": ["sign flip", "ALIE"], "seeds": [0, 1]},
        "late": {"defences": BTARD[:1], "attacks": ["ALIE"], "settings": {"attack.start": 20}},
        "two": {"defences": BTARD[:1], "attacks": ["ALIE"], "settings": {"protocol.validators": 2}},
        "seldom": {"defences": BTARD[:1], "attacks": ["ALIE"], "settings": {"attack.every": 3}},
    }
    return make_grid(experiments={**experiments, **entries})


def test_runs_with_equal_coins_are_one_sample(tmp_path: Path) -> None:
    grid = survival_grid()
    for cell in grid.cells:
        shift = cell.seed + (cell.config.attack.start == 20)
        bans = attackers_go(cell, tuple(step + shift for step in BAN_STEPS[: 6 if cell.seed else 7]))
        finish(tmp_path, cell, bans=bans)
    groups, differing = collapse(read(tmp_path, grid).of(grid.experiments))
    assert differing == []
    one, two = groups
    assert (one.peers, one.byzantine, one.validators, one.level) == (16, 7, 1, 0.005)
    assert [(x.start, x.horizon, len(x.runs)) for x in one.samples] == [(10, 30, 4), (10, 30, 4), (20, 20, 1)]
    # The second seed has an attacker left after the 30 steps that it was watched.
    assert one.last_bans == [21, 30, 20] and one.unfinished == 2
    assert list(one.left()[:4]) == pytest.approx([7, 20 / 3, 16 / 3, 4])
    assert (two.validators, two.last_bans) == (2, [21])
    rows = by_name(tables.survival_table(groups))
    assert [(row["runs"], row["draws"], row["last ban, mean"]) for row in rows] == [
        ("9", "3", "23.7"),
        ("1", "1", "21.0"),
    ]


def test_runs_with_equal_coins_and_other_bans_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = survival_grid()
    out = write_sweep(tmp_path / "s", grid)
    stranger = next(cell for cell in grid.cells if cell.name == "btard-tau-10/alie/seed-1")
    shutil.rmtree(out / "runs" / stranger.name)
    finish(out, stranger, bans=attackers_go(stranger, (1, 2, 2, 5, 8, 13, 22)))
    peer = sorted(stranger.config.attackers())[-1]
    message = (
        f"btard-tau-1/sign-flip/seed-1 bans peer {peer} 21 steps after the start, btard-tau-10/alie/seed-1 bans peer "
        f"{peer} 22 steps after the start"
    )
    groups, differing = collapse(read(out, grid).outcomes.values())
    assert differing == [message]
    assert groups[0].last_bans == [21, 21, 20]  # the first one counts; the late one was not watched for longer
    assert main([str(out)]) == 0
    assert f"WARNING: equal coins, different bans: {message}" in capsys.readouterr().err
    for file in ("report.md", "survival.md"):
        assert f"**equal coins, different bans: {message}**" in (out / "report" / file).read_text()


def test_bans_that_are_too_late_for_the_law_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = make_grid(
        settings={**SETTINGS, "steps": 140},
        experiments={"e": {"defences": BTARD[:1], "attacks": ["ALIE"], "seeds": [0, 1, 2]}},
    )
    out = tmp_path / "s"
    out.mkdir()
    (out / "sweep.yaml").write_text(grid.text)
    for cell in grid.cells:
        finish(out, cell, lambda step: 0.1, attackers_go(cell, (90, 91, 92, 93, 94, 95, 96)))
    assert main([str(out)]) == 0
    assert "WARNING: the sampling law is rejected for n, b, m = 16, 7, 1: p = " in capsys.readouterr().err
    (row,) = csv.DictReader((out / "report/survival.csv").open())
    assert row["agrees"] == "NO" and float(row["p"]) < 1e-4
    assert row["by the law"] == "37.1"  # as `expected_last_ban` says


def test_a_run_that_diverged_was_watched_until_then(tmp_path: Path) -> None:
    grid = make_grid(experiments={"e": {"defences": BTARD[:1], "attacks": ["ALIE"]}})
    finish(tmp_path, grid.cells[0], bans=attackers_go(grid.cells[0], (1, 2)), diverged_at=16)
    (group,), _ = collapse(read(tmp_path, grid).outcomes.values())
    assert (group.steps, group.last_bans, group.unfinished) == (6, [6], 1)
    assert group.expected_last_ban() == pytest.approx(law_of_last_ban(16, 7, 1, 10, 6) @ np.arange(7))


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        ({}, True),
        ({"attack.every": 2}, False),
        ({"attack.stop": 20}, False),
        ({"attack.name": "wrong_aggregate"}, False),
        ({"aggregator.name": "mean"}, False),
        ({"protocol.validation": "tolerant"}, False),
        ({"protocol.validators": 0}, False),
    ],
)
def test_the_law_is_for_attacks_that_any_validator_convicts_at_every_step(changes: dict, counts: bool) -> None:
    attack = {"A": {"attack.name": "alie", **changes}}
    grid = make_grid(attacks=attack, defences={"BTARD": {}}, experiments={"e": {}})
    assert survival.always_on(grid.cells[0].config) is counts


def test_the_band_holds_the_mean_as_often_as_it_says(tmp_path: Path) -> None:
    grid = make_grid(experiments={"e": {"defences": BTARD[:1], "attacks": ["ALIE"], "seeds": [0, 1]}})
    for cell in grid.cells:
        finish(tmp_path, cell)
    (group,), _ = collapse(read(tmp_path, grid).outcomes.values())
    law, (low, high) = survival_law(16, 7, 1, 30, start=10), group.band()
    assert list(group.law()) == pytest.approx(list(law @ np.arange(8)))
    for s in (0, 3, 12, 29):
        inside = above = below = 0.0
        for one, other in itertools.product(range(8), repeat=2):
            chance, mean = law[s, one] * law[s, other], (one + other) / 2
            inside += chance * (low[s] <= mean <= high[s])
            above, below = above + chance * (mean > high[s]), below + chance * (mean < low[s])
        assert inside >= 0.9 - 1e-9 and max(above, below) <= 0.05 + 1e-9


def test_the_figure_of_survival_has_means_law_and_band(tmp_path: Path) -> None:
    grid = survival_grid()
    results = read(write_sweep(tmp_path / "s", grid), grid)
    groups, _ = collapse(results.outcomes.values())
    drawn = survival_figure(groups).axes
    assert [axes.get_title() for axes in drawn] == [
        "7 of 16 attack, 1 validator\nmean of 3 draws",
        "7 of 16 attack, 2 validators\none draw",
    ]
    for group, axes in zip(groups, drawn, strict=True):
        curve, law = line(axes, "Byzantine peers left"), line(axes, "by the sampling law")
        assert list(curve.get_ydata()) == list(group.left()) and curve.get_linestyle() == "-"
        assert list(law.get_ydata()) == list(group.law()) and law.get_linestyle() == "--"
        (band,) = axes.collections
        assert band.get_paths()[0].get_extents().ymax == max(group.band()[1])


@pytest.mark.timeout(120)
def test_real_runs_with_equal_coins_ban_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {
        "peers": 7, "byzantine": 2, "steps": 8, "eval_every": 4, "test_samples": 20, "batch_size": 2, "threads": 1,
        "model.width": 1, "data.name": "digits", "attack.start": 2, "commitments": "ideal",
    }  # fmt: skip
    grid = make_grid(settings=settings, experiments={"e": {"defences": BTARD, "attacks": ["sign flip", "ALIE"]}})
    (tmp_path / "sweep.yaml").write_text(grid.text)
    for cell in grid.cells:
        train(cell.config, tmp_path / "runs" / cell.name, progress=False, events=False)
    assert main([str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "WARNING" not in said.err and "All 4 runs are finished" in said.out
    (row,) = csv.DictReader((tmp_path / "report/survival.csv").open())
    assert (row["runs"], row["draws"], row["honest banned"]) == ("4", "1", "0")
    assert float(row["last ban, mean"]) > 0
