"""What a report says about the paper's claims, and about chance, from run folders that were written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from btard.protocol.law import independent_law
from resnet.experiments.claims import COLUMNS, claims_table
from resnet.experiments.grid import Cell, Grid
from resnet.experiments.noise import QuietRuns, chance_dip
from resnet.experiments.outcomes import Results
from resnet.experiments.survival import AUTHORS, collapse
from resnet.experiments.tables import results_table
from tests.resnet.sweeps import by_name, early, finish, make_grid, read

QUIET = {0: 0.0, 1: 0.02, 2: -0.01}
"""Seed -> what a run without attack has above the rising line after step 20."""


def swept(tmp_path: Path, lost: dict[str, float], **entry: object) -> tuple[Grid, Results]:
    """A finished sweep; an attacked run of a defence is `lost` below the rising line after its start."""
    grid = make_grid(experiments=early(**entry))
    for cell in grid.cells:
        finish(tmp_path, cell, lambda step, cell=cell: step / 100 + after(cell, step, lost))
    return grid, read(tmp_path, grid)


def after(cell: Cell, step: int, lost: dict[str, float]) -> float:
    if cell.config.attack.name is None:
        return QUIET[cell.seed] if step > 20 else 0.0
    return -lost[cell.defence] if step > 10 else 0.0


def claims(results: Results, grid: Grid) -> dict[str, dict[str, str]]:
    return {row["claim of the paper"]: row for row in by_name(claims_table(results, grid.experiments))}


def test_a_dip_by_chance_is_the_largest_lead_among_runs_without_attack(tmp_path: Path) -> None:
    assert chance_dip({5: 0.9, 15: 0.1, 25: 0.2}, {5: 0.0, 15: 0.2, 25: 0.25}, 10, 20) == pytest.approx(10)
    assert chance_dip({5: 0.1}, {5: 0.2}, 10, 20) is None
    defences = ["BTARD, tau 1"]
    grid, results = swept(tmp_path, {defences[0]: 0.05}, defences=defences, seeds=[0, 1, 2])
    attacked = results.series(grid.experiments[0])[1]
    noise = QuietRuns(results).noise(attacked)
    assert noise is not None and noise.runs == 3
    # Each ordered pair: 0 below 1, 0 below 2, 1 below 0 ...; where they are equal until step 20 the lead is 0.
    assert sorted(round(dip, 6) for dip in noise.dips) == [0, 0, 0, 1, 2, 3]
    row = by_name(results_table(results.series(grid.experiments[0]), QuietRuns(results)))[1]
    assert row["dip by chance"] == "0.0 to 3.0"


def test_a_smaller_difference_than_chance_makes_agrees_with_nothing(tmp_path: Path) -> None:
    defences = ["BTARD, tau 1", "BTARD, tau 10"]
    for name, weak, agrees in (("near", 0.07, "cannot be told"), ("far", 0.30, "yes")):
        lost = {"BTARD, tau 1": 0.05, "BTARD, tau 10": weak}
        kinds = {"attacks": ["no attack", "sign flip"], "defences": defences, "seeds": [0, 1, 2]}
        grid, results = swept(tmp_path / name, lost, **kinds)
        row = claims(results, grid)["Stronger clipping dips less than weaker"]
        assert row["agrees"] == agrees, row


def test_every_claim_has_its_number(tmp_path: Path) -> None:
    lost = {"BTARD, tau 1": 0.02, "BTARD, tau 10": 0.2, "mean": 0.28}
    grid, results = swept(tmp_path, lost, attacks=["no attack", "sign flip"], defences=list(lost), seeds=[0])
    rows = claims(results, grid)
    assert set(next(iter(rows.values()))) == set(COLUMNS)
    collapse_row = rows["Without a defence, training collapses"]
    assert (collapse_row["our number"], collapse_row["agrees"]) == ("sign flip 12.0 % of 40.0", "yes")
    bans = rows["All attackers are banned soon"]
    assert bans["our number"] == "14 of 14 banned, the last one after 21 steps; 1 independent draw"
    back = rows["After the bans, accuracy is as without attack"]
    assert back["agrees"] == "in 1 of 2" and "BTARD, tau 10: 0 of 1, not under sign flip" in back["our number"]
    assert rows["No honest peer is banned"]["our number"] == "0 banned"
    assert "93.5 % without attack" not in rows, "these are no images of CIFAR-10"
    assert "no noise known" in rows["Stronger clipping dips less than weaker"]["why"]


def test_btard_without_its_own_quiet_run_is_compared_with_the_means(tmp_path: Path) -> None:
    grid = make_grid(
        experiments={
            "quiet": {"attacks": ["no attack"], "defences": ["mean"]},
            "attacked": {"attacks": ["sign flip"], "defences": ["BTARD, tau 1", "Krum"], "settings": {"byzantine": 3}},
        }
    )
    for cell in grid.cells:
        finish(tmp_path, cell)
    results = read(tmp_path, grid)
    of = {outcome.cell.defence: outcome for outcome in results.outcomes.values()}
    assert of["BTARD, tau 1"].borrowed and of["BTARD, tau 1"].reference == of["mean"].curve
    assert of["Krum"].reference is None, "a server's rule differs from the mean without any attack"
    rows = by_name(results_table(results.series(grid.experiments[1]), QuietRuns(results)))
    assert rows[0]["without attack"] == "40.0 (mean)"


def test_survival_stands_beside_both_laws(tmp_path: Path) -> None:
    law = independent_law(16, 7, 500)
    assert np.all(np.diff(law[:, 0]) >= 0)
    _, results = swept(tmp_path, {"BTARD, tau 1": 0.0}, defences=["BTARD, tau 1"], seeds=[0])
    groups, _ = collapse(results.outcomes.values())
    assert groups[0].expected_last_ban(AUTHORS) > groups[0].expected_last_ban()
