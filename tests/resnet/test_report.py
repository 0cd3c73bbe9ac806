"""Reports of sweeps whose run folders were written here: what they say follows from these files by hand."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from btard.harness.packed import pack
from btard.harness.settings import config_text
from btard.protocol.law import survival_law
from resnet.experiments import outcomes, survival, tables
from resnet.experiments.export import export
from resnet.experiments.grid import Cell, Grid, parse_grid
from resnet.experiments.headline import headline_figure
from resnet.experiments.noise import QuietRuns
from resnet.experiments.outcomes import Outcome, Results, read_results, read_sweep, varied_keys
from resnet.experiments.plan import Branch, make_plan
from resnet.experiments.plots import accuracy_figure, overview_experiments, survival_figure
from resnet.experiments.survival import collapse, distribution_of_sum, two_sided
from resnet.experiments.tracking import BANNED_TAG
from resnet.report import main
from resnet.training import train
from tests.wandb_files import records

SETTINGS = {
    "peers": 16,
    "byzantine": 7,
    "steps": 40,
    "eval_every": 5,
    "attack.start": 10,
    "data.name": "folder",
    "data.path": "/home/somebody/pictures.tar",
    "data.label": "pictures",
}
ATTACKS = {"no attack": {}, "sign flip": {"attack.name": "sign_flip"}, "ALIE": {"attack.name": "alie"}}
DEFENCES = {
    "BTARD, tau 1": {"protocol.tau": 1},
    "BTARD, tau 10": {"protocol.tau": 10},
    "mean": {"aggregator.name": "mean"},
    "Krum": {"aggregator.name": "krum"},
}
BTARD = ["BTARD, tau 1", "BTARD, tau 10"]
STEPS = range(5, 41, 5)

BAN_STEPS = (1, 2, 2, 5, 8, 13, 21)
"""When the seven attackers of a run are banned, in steps after the start."""


def make_grid(**entries: Any) -> Grid:
    content = {"settings": SETTINGS, "attacks": ATTACKS, "defences": DEFENCES, "title": "A test", **entries}
    return parse_grid(content, "a test")


def early(**entry: Any) -> dict[str, Any]:
    return {"early": {"title": "Early attacks", "defences": BTARD, "seeds": [0, 1], **entry}}


def rising(step: int) -> float:
    return step / 100


def ban(peer: int, step: int, *, byzantine: bool = True, kind: str = "wrong_gradient") -> dict[str, Any]:
    return {"peer": peer, "step": step, "kind": kind, "accuser": 0, "byzantine": byzantine}


def attackers_go(cell: Cell, after: tuple[int, ...] = BAN_STEPS) -> list[dict[str, Any]]:
    """Every attacker of a BTARD run is banned `after` so many steps of its attack."""
    config = cell.config
    if config.attack.name is None or config.aggregator.name != "btard":
        return []
    peers = sorted(config.attackers())
    return [ban(peer, config.attack.start + step) for peer, step in zip(peers, after, strict=False)]


def finish(
    out: Path,
    cell: Cell,
    accuracy: Callable[[int], float] = rising,
    bans: list[dict[str, Any]] | None = None,
    **summary: Any,
) -> Path:
    """Write the folder of a finished run; `accuracy` of the steps done. By default all attackers are banned."""
    config, folder = cell.config, out / "runs" / cell.name
    metrics, timings = [], []
    for done in range(1, config.steps + 1):
        measured = done % config.eval_every == 0 or done == config.steps
        line = {"test_accuracy": accuracy(done), "test_loss": 2.0} if measured else {}
        metrics.append({"step": done - 1, "loss": 1.0, "lr": 0.1, "active": 16, **line})
        timings.append({"step": done - 1, "gradients": 0.06, "report": 0.02})
    bans = attackers_go(cell) if bans is None else bans
    content = {
        "test_accuracy": accuracy(config.steps),
        "bans": bans,
        "byzantine": sorted(config.attackers()),
        "diverged_at": None,
        "data": config.data.label,
        "parameters": 123,
        "device": "cpu",
        "versions": {"torch": "2.9.9", "python": "3.10.1"},
    }
    files = {
        "config.yaml": config_text(config),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in metrics),
        "timings.jsonl": "".join(json.dumps(line) + "\n" for line in timings),
        "ledger.jsonl": '{"step": 11}\n',
        "summary.json": json.dumps(content | summary, indent=2),
    }
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def write_sweep(out: Path, grid: Grid, but: str = " ") -> Path:
    """A sweep all of whose runs are finished, except those with `but` in their name."""
    out.mkdir()
    (out / "sweep.yaml").write_text(grid.text)
    for cell in grid.cells:
        if but not in cell.name:
            lost = 0.02 * (cell.config.attack.name is not None) + 0.01 * cell.seed
            finish(out, cell, lambda step, lost=lost: rising(step) - lost)
    return out


def read(out: Path, grid: Grid) -> Results:
    return read_results(out, grid)


def outcome_of(tmp_path: Path, curve: list[float], **summary: Any) -> Outcome:
    """An attacked run with accuracies `curve` at `STEPS`, beside one without attack that has 5 %, 10 %, ... 40 %."""
    grid = make_grid(experiments={"e": {"attacks": ["no attack", "sign flip"], "defences": ["BTARD, tau 1"]}})
    quiet, attacked = grid.cells
    finish(tmp_path, quiet)
    finish(tmp_path, attacked, lambda step: dict(zip(STEPS, curve, strict=True))[step], **summary)
    return read(tmp_path, grid).outcomes[attacked.name]


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


def by_name(table: tables.Table) -> list[dict[str, str]]:
    return [dict(zip(table[0], row, strict=True)) for row in table[1:]]


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


def panels(figure) -> dict[str, Any]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}


def line(axes, label: str):
    (found,) = [entry for entry in axes.get_lines() if entry.get_label() == label]
    return found


def test_a_panel_per_attack_with_the_mean_of_the_seeds_and_their_range(tmp_path: Path) -> None:
    grid = make_grid(experiments=early())
    results = read(write_sweep(tmp_path / "s", grid), grid)
    figure = accuracy_figure(results, grid.experiments)
    assert list(panels(figure)) == ["sign flip", "ALIE"]
    axes = panels(figure)["sign flip"]
    strong, weak = (line(axes, defence) for defence in BTARD)
    assert list(strong.get_xdata()) == list(STEPS)
    assert list(strong.get_ydata()) == pytest.approx([step - 2.5 for step in STEPS])  # seeds lose 2 and 3 points
    low, high = axes.collections[0].get_paths()[0].get_extents().get_points()[:, 1]
    assert (low, high) == pytest.approx((2, 38))
    assert strong.get_linestyle() == weak.get_linestyle() == "-"
    assert strong.get_color() != weak.get_color()
    # The run without attack of the strongest tau, which the legend names.
    assert list(line(axes, "no attack (BTARD, tau 1)").get_ydata()) == pytest.approx([step - 0.5 for step in STEPS])
    assert list(line(axes, "the attack starts").get_xdata()) == [10, 10]
    assert "pictures" in figure.get_supylabel()


def test_bans_are_ticks_below_the_curves_in_a_row_for_each_defence(tmp_path: Path) -> None:
    grid = make_grid(experiments=early(seeds=[0], attacks=["no attack", "sign flip"]))
    for cell in grid.cells:
        honest = [ban(0, 33, byzantine=False)] if cell.config.protocol.tau == 10 and cell.config.byzantine else []
        finish(tmp_path, cell, bans=attackers_go(cell) + honest)
    axes = panels(accuracy_figure(read(tmp_path, grid), grid.experiments))["sign flip"]
    rugs = [entry for entry in axes.get_lines() if entry.get_label() == "an attacker is banned"]
    assert [sorted(rug.get_xdata()) for rug in rugs] == [[10 + step for step in BAN_STEPS]] * 2
    assert [rug.get_color() for rug in rugs] == [line(axes, defence).get_color() for defence in BTARD]
    (first,), (second,) = ({*rug.get_ydata()} for rug in rugs)
    assert first != second
    # Below zero percent, which is where the curves begin.
    zero = axes.transAxes.inverted().transform(axes.transData.transform((0, 0)))[1]
    assert min(first, second) > 0 and max(first, second) < zero
    cross = line(axes, "an honest peer is banned")
    assert list(cross.get_xdata()) == [33] and cross.get_marker() == "x"
    assert cross.get_color() == line(axes, "BTARD, tau 10").get_color()


def test_one_legend_outside_the_panels_names_every_curve_once(tmp_path: Path) -> None:
    grid = make_grid(experiments=early())
    figure = accuracy_figure(read(write_sweep(tmp_path / "s", grid), grid), grid.experiments)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        *BTARD,
        "the attack starts",
        "no attack (BTARD, tau 1)",
        "an attacker is banned",
    ]
    assert not any(legend.get_window_extent().overlaps(axes.bbox) for axes in figure.axes)
    assert all(axes.get_legend() is None for axes in figure.axes)


def test_rules_that_coincide_are_one_line_with_both_names(tmp_path: Path) -> None:
    rules = {name: {"aggregator.name": name} for name in ("mean", "coordinate_median", "trimmed_mean")}
    grid = make_grid(defences=rules, experiments={"early": {"attacks": ["sign flip", "ALIE"]}})
    for cell in grid.cells:
        apart = cell.defence == "trimmed_mean" and cell.attack == "ALIE"
        finish(tmp_path, cell, lambda step, apart=apart: step / 100 + 0.01 * apart)
    drawn = panels(accuracy_figure(read(tmp_path, grid), grid.experiments))
    for axes in drawn.values():
        names = [entry.get_label() for entry in axes.get_lines()]
        assert names[:2] == ["mean = coordinate_median", "trimmed_mean"]


def test_the_headline_shows_collapse_recovery_and_bans(tmp_path: Path) -> None:
    entry = {"attacks": ["no attack", "sign flip"], "defences": [*BTARD, "mean"], "seeds": [0, 1]}
    grid = make_grid(experiments={"headline": entry})
    for cell in grid.cells:
        lost = 0.01 * cell.seed + (0 if cell.config.attack.name is None else 0.2 if cell.defence == "mean" else 0.02)
        finish(tmp_path, cell, lambda step, lost=lost: rising(step) - lost)
    results = read(tmp_path, grid)
    figure = headline_figure(results, grid.experiments)
    assert figure is not None
    whole, close = figure.axes
    for axes in (whole, close):
        mean, strong = (
            line(axes, "mean, no defence (2 seeds)"),
            line(axes, "BTARD, tau 1 (2 seeds) = BTARD, tau 10 (2 seeds)"),
        )
        assert list(strong.get_ydata()) == pytest.approx([step - 2.5 for step in STEPS])
        assert mean.get_linestyle() != strong.get_linestyle()
        assert sorted(set(line(axes, "an attacker is banned").get_xdata())) == sorted({10 + s for s in BAN_STEPS})
        assert list(line(axes, "no attack (2 seeds)").get_ydata()) == pytest.approx([step - 0.5 for step in STEPS])
    assert close.get_xlim()[0] > 0 == whole.get_xlim()[0]
    assert headline_figure(results, []) is None


def test_the_overview_lays_the_servers_rules_over_the_protocol(tmp_path: Path) -> None:
    grid = make_grid(
        experiments={"x": {"defences": ["Krum"], "settings": {"byzantine": 3}}}
        | early(attacks=["no attack", "sign flip"])
        | {"baselines": {"defences": ["mean"]}}
    )
    results = read(write_sweep(tmp_path / "s", grid), grid)
    chosen = overview_experiments(grid.experiments)
    assert [experiment.name for experiment in chosen] == ["early", "baselines"]
    assert [experiment.name for experiment in overview_experiments(grid.experiments[:1])] == ["x"]
    drawn = panels(accuracy_figure(results, chosen))
    assert list(drawn) == ["sign flip"]  # ALIE is not among the attacks of `early`
    mean, strong = line(drawn["sign flip"], "mean"), line(drawn["sign flip"], BTARD[0])
    assert mean.get_linestyle() == "--" and mean.get_linewidth() < strong.get_linewidth()
    # In its own figure a rule has the same colour.
    alone = panels(accuracy_figure(results, [chosen[1]]))["ALIE"]
    assert line(alone, "mean").get_color() == mean.get_color() != strong.get_color()


def test_variants_are_curves_of_their_own(tmp_path: Path) -> None:
    experiments = {"m": {"vary": {"protocol.validators": [1, 2]}, "defences": ["BTARD, tau 1"]}}
    grid = make_grid(experiments=experiments)
    axes = panels(accuracy_figure(read(write_sweep(tmp_path / "s", grid), grid), grid.experiments))["ALIE"]
    colours = {line(axes, f"BTARD, tau 1, validators {m}").get_color() for m in (1, 2)}
    assert len(colours) == 2
    assert line(axes, "no attack (BTARD, tau 1, validators 1)")


@pytest.mark.parametrize(("start", "left"), [(10, 0), (30, 28.8)])
def test_only_a_late_attack_is_zoomed_in_on(start: int, left: float, tmp_path: Path) -> None:
    grid = make_grid(experiments=early(settings={"attack.start": start}, seeds=[0]))
    for cell in grid.cells:
        finish(tmp_path, cell, bans=[])
    axes = panels(accuracy_figure(read(tmp_path, grid), grid.experiments))["ALIE"]
    assert axes.get_xlim() == pytest.approx((left, 40 + 0.01 * (40 - left)))


def test_without_an_attacked_run_there_is_no_figure(tmp_path: Path) -> None:
    grid = make_grid(experiments=early())
    results = read(write_sweep(tmp_path / "s", grid, but="a"), grid)
    assert not results.outcomes
    for cell in grid.cells:
        if cell.config.attack.name is None:
            finish(tmp_path / "s", cell)
    assert accuracy_figure(read(tmp_path / "s", grid), grid.experiments) is None


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


def report(out: Path, where: Path, *words: str) -> dict[str, bytes]:
    """The files of a report, but for those of trackers."""
    assert main([str(out), "--out", str(where), *words]) == 0
    return {file.name: file.read_bytes() for file in where.iterdir() if file.is_file()}


FILES = {
    "report.md", "results.md", "results.csv", "runs.csv", "curves.csv", "survival.md", "survival.csv", "speed.md",
    "claims.csv", "claims.md",
    "survival.png", "survival.svg", "overview.png", "overview.svg", "accuracy-early.png", "accuracy-early.svg",
}  # fmt: skip


def test_equal_files_give_equal_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_sweep(tmp_path / "s", make_grid(experiments=early()))
    first = report(out, tmp_path / "one")
    assert first == report(out, tmp_path / "two")
    assert first.keys() == FILES
    assert max(map(len, first.values())) < 200_000
    assert b"<text" in first["accuracy-early.svg"]  # text that can be searched, not outlines
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


def test_a_report_says_of_how_many_runs_the_speed_is_known(tmp_path: Path) -> None:
    out = write_sweep(tmp_path / "s", make_grid(experiments=early()))
    assert b"Measured in" not in report(out, tmp_path / "all")["speed.md"]
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


def test_tensorboard_shows_each_run_with_its_bans_settings_and_outcome(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    out = write_sweep(tmp_path / "s", make_grid(experiments=early()))
    for _ in range(2):  # the second time replaces the first
        assert main([str(out), "--tensorboard"]) == 0
    place = out / "report/tensorboard"
    events = list(place.rglob("events.out.tfevents.*"))
    assert {str(file.parent.relative_to(place)) for file in events} == {
        str(folder.parent.relative_to(out / "runs")) for folder in (out / "runs").rglob("summary.json")
    }
    assert len(events) == 12
    run = EventAccumulator(str(place / "btard-tau-10/alie/seed-1"), size_guidance={"scalars": 0}).Reload()
    accuracy = run.Scalars("accuracy/test")
    assert [event.step + 1 for event in accuracy] == list(STEPS)
    assert accuracy[-1].value == pytest.approx(0.37)
    banned = {event.step: event.value for event in run.Scalars(BANNED_TAG)}
    assert [banned[10 + step] for step in (0, 1, 2, 20, 21)] == [0, 1, 3, 6, 7]
    assert run.Scalars("deepest dip")[0].value == pytest.approx(2)
    assert run.Scalars("steps until last ban")[0].value == 21
    content = run.PluginTagToContent("hparams")
    started = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    settings = {name: getattr(value, value.WhichOneof("kind")) for name, value in started.hparams.items()}
    assert settings["attack"] == "ALIE" and settings["defence"] == "BTARD, tau 10" and settings["tau"] == "10.0"
    assert (settings["start"], settings["every"], settings["byzantine"], settings["seed"]) == (10, 1, 7, 1)
    described = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    choices = {info.name: [v.string_value for v in info.domain_discrete.values] for info in described.hparam_infos}
    assert choices["attack"] == sorted(ATTACKS)
    assert "final accuracy" in {info.name.tag for info in described.metric_infos}
    quiet = EventAccumulator(str(place / "btard-tau-1/no-attack/seed-0")).Reload()
    assert BANNED_TAG not in quiet.Tags()["scalars"] and "deepest dip" not in quiet.Tags()["scalars"]
    assert quiet.PluginTagToContent("hparams").keys() == content.keys()


def test_wandb_gets_each_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    out = write_sweep(tmp_path / "s", make_grid(experiments=early(seeds=[0], defences=BTARD[:1], attacks=["ALIE"])))
    assert main([str(out), "--wandb", "a-project"]) == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s"]  # nothing beside the report
    (file,) = (out / "report/wandb").glob("offline-run-*/*.wandb")
    found = records(file)
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"][-1:]
    assert (run.project, run.run_group, run.display_name) == ("a-project", "BTARD, tau 1", "ALIE, BTARD, tau 1, seed 0")
    assert list(run.tags) == ["ALIE", "early"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (config["attack"], config["start"], config["byzantine"]) == ("ALIE", 10, 7)
    history = [record.history.item for record in found if record.WhichOneof("record_type") == "history"]
    logged = [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in history]
    assert [row["_step"] + 1 for row in logged if "accuracy/test" in row] == list(STEPS)
    assert max(row.get(BANNED_TAG, 0) for row in logged) == 7


def test_without_wandb_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    out = write_sweep(tmp_path / "s", make_grid(experiments=early(seeds=[0])))
    with pytest.raises(SystemExit):
        main([str(out), "--wandb", "a-project"])
    assert "error: --wandb: the package wandb is not installed; pip install" in capsys.readouterr().err
