"""What a run comes to, and the tables of a sweep."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from resnet.experiments import outcomes, tables
from resnet.experiments.noise import QuietRuns
from resnet.experiments.outcomes import varied_keys
from tests.resnet.sweeps import (
    BAN_STEPS,
    BTARD,
    SETTINGS,
    STEPS,
    attackers_go,
    ban,
    by_name,
    early,
    finish,
    make_grid,
    outcome_of,
    read,
    rising,
    write_sweep,
)


@pytest.mark.parametrize(
    ("curve", "dip", "recovery"),
    [
        ([0.05, 0.10, 0.12, 0.08, 0.20, 0.28, 0.30, 0.38], 12, 30),  # the gap of 5 points at step 35 counts
        ([0.05, 0.10, 0.12, 0.08, 0.20, 0.28, 0.33, 0.38], 12, 20),
        ([0.05, 0.10, 0.12, 0.17, 0.22, 0.27, 0.32, 0.37], 3, 0),  # three points are not out
        ([0.05, 0.10, 0.12, 0.17, 0.21, 0.27, 0.32, 0.37], 4, 20),
        ([0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.36], 4, None),  # at the end it was never back
        ([0.05, 0.10, 0.05, 0.20, 0.25, 0.30, 0.35, 0.36], 10, None),  # it was back, and left again
        ([0.01, 0.01, 0.16, 0.22, 0.26, 0.32, 0.37, 0.42], -1, 0),  # before the start nothing counts
        ([0.05, 0.10, 0.15, 0.10, 0.25, 0.20, 0.35, 0.40], 10, 25),  # two dips are as deep
    ],
)
def test_dip_and_recovery_by_hand(
    curve: list[float], dip: float, recovery: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "RECOVERY_WINDOW", 1)
    outcome = outcome_of(tmp_path, curve)
    assert outcome.dip == pytest.approx(dip)
    assert outcome.recovery == recovery
    assert outcome.accuracy == curve[-1] and outcome.reference_accuracy == 0.40


@pytest.mark.parametrize(
    ("gaps", "recovery"),
    [
        ([10, 2, 0, 7, 0, 0], 10),  # means of three: 4, 3, 2.3, 2.3
        ([20, 10, 2, 0, 7, 0], 15),
        ([0, 0, 0, 0, 9, 0], 0),  # one measurement that is off is chance
        ([9, 0, 0, 0, 9, 1], None),  # 3.3 at the end
    ],
)
def test_recovery_is_judged_by_means_of_several_measurements(
    gaps: list[float], recovery: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcomes, "RECOVERY_WINDOW", 3)
    curve = [0.05, 0.10, *((step - gap) / 100 for step, gap in zip(STEPS[2:], gaps, strict=True))]
    assert outcome_of(tmp_path, curve).recovery == recovery


def test_bans_count_from_the_start_of_the_attack(tmp_path: Path) -> None:
    bans = [ban(3, 31), ban(5, 12), ban(0, 20, byzantine=False, kind="dispute"), ban(2, 11, byzantine=False)]
    outcome = outcome_of(tmp_path, [step / 100 for step in STEPS], bans=bans, diverged_at=35)
    assert (outcome.first_ban, outcome.last_ban, len(outcome.attacker_bans), outcome.attackers) == (2, 21, 2, 7)
    assert outcome.honest_bans == {"dispute": 1, "wrong_gradient": 1}
    assert outcome.diverged_at == 35


def test_nobody_banned_is_no_number(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path, [step / 100 for step in STEPS], bans=[])
    assert outcome.first_ban is outcome.last_ban is None
    assert outcome.dip == 0 and outcome.recovery == 0


def test_a_run_is_compared_with_the_one_that_differs_in_its_attack_alone(tmp_path: Path) -> None:
    experiments = {
        "short": {"settings": {"steps": 20}, "attacks": ["sign flip"], "defences": ["BTARD, tau 1", "Krum"]},
        "long": {"attacks": ["no attack"], "defences": BTARD, "seeds": [0, 1]},
        "few": {"settings": {"byzantine": 3}, "attacks": ["no attack", "ALIE"], "defences": ["Krum"]},
    }
    changes = {"byzantine": 4, "optimizer.schedule_steps": 99}  # Krum takes both 4 and 3 of 16
    grid = make_grid(settings={**SETTINGS, **changes}, experiments=experiments)
    for cell in grid.cells:
        finish(tmp_path, cell, lambda step, tau=cell.config.protocol.tau, seed=cell.seed: (step + tau + seed) / 100)
    outcomes = read(tmp_path, grid).outcomes
    # The longer run up to its own last step, of the same tau and seed.
    cut = outcomes["btard-tau-1/sign-flip/steps-20/seed-0"]
    assert cut.reference is not None and cut.reference[20] == 0.21 and cut.reference_accuracy == 0.21
    # Krum made for 4 is not compared with Krum made for 3.
    assert outcomes["krum/sign-flip/steps-20/seed-0"].reference is None
    assert outcomes["krum/sign-flip/steps-20/seed-0"].dip is None
    assert outcomes["krum/alie/byzantine-3/seed-0"].reference is not None
    # One that is not finished is none.
    shutil.rmtree(tmp_path / "runs/btard-tau-1/no-attack/seed-0")
    assert read(tmp_path, grid).outcomes[cut.cell.name].reference is None


def test_the_run_of_equal_length_goes_before_a_longer_one(tmp_path: Path) -> None:
    experiments = {
        "long": {"settings": {"steps": 50, "optimizer.schedule_steps": 99}, "attacks": ["no attack"]},
        "usual": {"attacks": ["no attack", "ALIE"], "settings": {"optimizer.schedule_steps": 99}},
    }
    grid = make_grid(defences={"BTARD": {}}, experiments=experiments)
    for cell in grid.cells:
        finish(tmp_path, cell, lambda step, bonus=cell.config.steps == 40: step / 100 + 0.01 * bonus)
    assert read(tmp_path, grid).outcomes[grid.cells[-1].name].reference_accuracy == pytest.approx(0.41)


def test_rows_are_means_and_ranges_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "RECOVERY_WINDOW", 1)
    grid = make_grid(experiments=early(attacks=["no attack", "sign flip"], defences=["BTARD, tau 1"], seeds=[0, 1, 2]))
    finals = {0: 0.30, 1: 0.36, 2: 0.38}
    for cell in grid.cells:
        quiet = cell.config.attack.name is None
        extra = [ban(0, 39, byzantine=False, kind="dispute")] if cell.seed == 1 and not quiet else []
        after = {0: (1, 4, 6, 9, 9, 9, 30), 1: BAN_STEPS, 2: (3, 5)}[cell.seed]
        curve = rising if quiet else lambda step, seed=cell.seed: finals[seed] if step > 15 else step / 100
        finish(tmp_path, cell, curve, attackers_go(cell, after) + extra, diverged_at=7 if cell.seed == 2 else None)
    results = read(tmp_path, grid)
    quiet, attacked = by_name(tables.results_table(results.series(grid.experiments[0]), QuietRuns(results)))
    assert quiet["final accuracy"] == "40.0"
    assert {quiet[name] for name in ("without attack", "deepest dip", "steps to recovery", "steps to last ban")} == {""}
    assert attacked == {
        "attack": "sign flip",
        "defence": "BTARD, tau 1",
        "seeds": "3",
        "final accuracy": "34.7 (30.0 to 38.0)",
        "without attack": "40.0",
        "deepest dip": "5.3 (2.0 to 10.0)",
        "dip by chance": "0.0",
        "steps to recovery": "0, - in 2 of 3",
        "attackers banned": "16 of 21",
        "steps to last ban": "19 (5 to 30)",
        "honest banned": "1 (dispute 1)",
        "diverged": "1 of 3, at step 7",
    }
    row = by_name(tables.results_csv(results, grid.experiments))[1]
    assert (row["accuracy_mean"], row["accuracy_min"], row["accuracy_max"]) == ("0.346666667", "0.3", "0.38")
    assert (row["recovered_runs"], row["compared_runs"], row["diverged_runs"]) == ("1", "3", "1")
    assert (row["attackers"], row["attackers_banned"], row["honest_banned"]) == ("21", "16", "1")


def test_tables_for_programs_have_every_run_setting_and_measurement(tmp_path: Path) -> None:
    both = early() | {"m": {"vary": {"protocol.validators": [1, 2]}, "defences": ["BTARD, tau 1"]}}
    grid = make_grid(experiments=both)
    results = read(write_sweep(tmp_path / "s", grid), grid)
    assert varied_keys(grid.cells) == ["byzantine", "seed", "attack.name", "protocol.validators", "protocol.tau"]
    rows = {row["run"]: row for row in by_name(tables.runs_csv(results, grid.experiments))}
    assert rows.keys() == {cell.name for cell in grid.cells}
    row = rows["btard-tau-1/sign-flip/seed-0"]
    assert row["experiments"] == "early m"
    assert (row["protocol.validators"], row["seed"], row["protocol.tau"], row["attack.name"]) == (
        "1",
        "0",
        "1",
        "sign_flip",
    )
    assert (row["accuracy"], row["dip_points"], row["recovery_steps"]) == ("0.38", "2", "0")
    assert (row["first_ban_steps"], row["last_ban_steps"]) == ("1", "21")
    assert (row["data"], row["device"], row["torch"], row["python"]) == ("pictures", "cpu", "2.9.9", "3.10.1")
    curves = by_name(tables.curves_csv(results.of(grid.experiments)))
    mine = [(line["step"], line["accuracy"], line["loss"]) for line in curves if line["run"] == row["run"]]
    assert mine == [(str(step), format(rising(step) - 0.02, ".9g"), "1") for step in STEPS]
    # What another experiment says about a run that both have is not what this one says.
    m_rows = by_name(tables.results_table(results.series(grid.experiments[1]), QuietRuns(results)))
    assert {row["variant"] for row in m_rows} == {"validators 1", "validators 2"}


def test_validators_cost_their_share_of_the_gradients(tmp_path: Path) -> None:
    experiments = {
        "m": {"vary": {"protocol.validators": [1, 2, 4]}, "defences": ["BTARD, tau 1"], "attacks": ["sign flip"]}
    }
    grid = make_grid(experiments=experiments | early())
    results = read(write_sweep(tmp_path / "s", grid), grid)
    rows = by_name(tables.validators_table(results, grid.experiments[0]))
    shares = [(row["validators"], row["gradients used"], row["steps to last ban"]) for row in rows]
    assert shares == [("1", "93.8%", "21"), ("2", "87.5%", "21"), ("4", "75.0%", "21")]
    assert tables.validators_table(results, grid.experiments[1]) == []


def test_speed_comes_from_timings(tmp_path: Path) -> None:
    grid = make_grid(experiments=early())
    results = read(write_sweep(tmp_path / "s", grid), grid)
    assert by_name(tables.speed_table(results, grid.experiments))[0] == {
        "experiment": "early",
        "defence": "BTARD, tau 1",
        "variant": "",
        "runs": "6",
        "steps/s": "12.50",
    }
