"""The figures of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resnet.experiments.headline import headline_figure
from resnet.experiments.plots import accuracy_figure, overview_experiments
from tests.resnet.sweeps import (
    BAN_STEPS,
    BTARD,
    STEPS,
    attackers_go,
    ban,
    early,
    finish,
    line,
    make_grid,
    read,
    rising,
    write_sweep,
)


def panels(figure) -> dict[str, Any]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}


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
