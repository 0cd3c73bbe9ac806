"""The main figure: training collapses without a defence, and recovers under BTARD after the bans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from btard.harness.figures import BLACK, BLUE, ORANGE, VERMILION, bare, new_figure
from resnet.experiments.grid import Experiment
from resnet.experiments.outcomes import Outcome, Results, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "headline"
"""The experiment that the figure shows, and the figure's file."""

SIZE = (8.4, 3.5)
"""Inches. With letters of 11 points it can be read at half the width of a page."""
LETTERS = 11
ZOOM = (0.3, 1.5)
"""How many steps before and after the start the right panel shows, in units of the time until the last ban, but at
least `LEAST` measurements after it."""
LEAST = 6

DOTTED, DASHED = (0, (1.2, 1.2)), (0, (5, 1.5))


def headline_figure(results: Results, experiments: Sequence[Experiment]) -> Figure | None:
    """Return the whole run and a closer look at the attack: no attack, the mean, BTARD with both radii, bans marked.

    Of the first attack of the experiment `headline` that BTARD met with a number as its radius. A line is the mean over
    the finished seeds, a band their range; the legend says how many there are, and what coincides. None without such
    runs, or without one that nobody attacks.
    """
    chosen = next((experiment for experiment in experiments if experiment.name == NAME), None)
    if chosen is None:
        return None
    radii = [entry for entry in results.series(chosen) if _has_radius(entry)]
    if not radii:
        return None
    attack = radii[0].attack
    found = sorted((entry for entry in radii if entry.attack == attack), key=lambda e: float(e.config.protocol.tau))
    strong, weak = found[0], found[-1]
    quiet = [outcome.reference for outcome in strong.outcomes if outcome.reference is not None]
    if not quiet:
        return None
    whose = ", mean" if any(outcome.borrowed for outcome in strong.outcomes) else ""
    curves: list[tuple[str, list[dict[int, float]], str, object]] = [
        (f"no attack{whose}{_seeds(quiet)}", [dict(curve) for curve in quiet], BLACK, DOTTED)
    ]
    undefended = _undefended(results, strong)
    if undefended:
        label = f"mean, no defence{_seeds(undefended)}"
        curves.append((label, [dict(o.curve) for o in undefended], VERMILION, DASHED))
    for entry, colour in ((strong, BLUE), (weak, ORANGE))[: 1 if strong is weak else 2]:
        curves.append(
            (f"{entry.defence}{_seeds(entry.outcomes)}", [dict(o.curve) for o in entry.outcomes], colour, "-")
        )
    figure = new_figure(*SIZE)
    whole, close = figure.subplots(1, 2, sharey=True, width_ratios=(1.35, 1))
    start, last = strong.config.attack.start, strong.config.steps
    for axes in (whole, close):
        for label, lines, colour, dashes in _merged(curves):
            _draw(axes, label, lines, colour, dashes)
        axes.axvline(start, color="0.35", lw=1.0, linestyle=(0, (2, 2)), zorder=0, label="the attack starts")
        bare(axes)
        axes.tick_params(labelsize=LETTERS - 1)
    for axes in (whole, close):
        for row, (entry, colour) in enumerate(((strong, BLUE), (weak, ORANGE))[: 1 if strong is weak else 2]):
            _mark_bans(axes, entry, colour, row)
    whole.set_xlim(0, last)
    bans = [step for entry in (strong, weak) for outcome in entry.outcomes for step in outcome.attacker_bans]
    width = max([*bans, LEAST * strong.config.eval_every / ZOOM[1]], default=1)
    close.set_xlim(max(0, start - ZOOM[0] * width), min(last, start + ZOOM[1] * width))
    top = max(100 * value for _, lines, _, _ in curves for line in lines for value in line.values())
    whole.set_ylim(-0.1 * top, 1.05 * top)
    whole.set_yticks(range(0, int(top) + 1, 20 if top > 60 else 10))
    whole.set_ylabel(f"test accuracy, %\n{strong.outcomes[0].summary['data']}", fontsize=LETTERS)
    whole.set_title("the whole run", fontsize=LETTERS)
    close.set_title(
        f"around the attack: {attack}, {strong.config.byzantine} of {strong.config.peers}", fontsize=LETTERS
    )
    figure.supxlabel("step", fontsize=LETTERS)
    handles, labels = whole.get_legend_handles_labels()
    order = dict(zip(labels, handles, strict=True))
    figure.legend(
        order.values(), order.keys(), loc="outside upper center", ncols=3, frameon=False, fontsize=LETTERS - 1
    )
    return figure


def _has_radius(entry: Series) -> bool:
    config = entry.config
    return config.btard and config.attack.name is not None and not isinstance(config.protocol.tau, str)


def _undefended(results: Results, beside: Series) -> list[Outcome]:
    """The runs of the mean under the same attack with the same model, schedule and start."""

    def alike(outcome: Outcome) -> bool:
        mine, other = beside.config, outcome.cell.config
        same = (mine.attack, mine.model, mine.optimizer, mine.steps) == (
            other.attack,
            other.model,
            other.optimizer,
            other.steps,
        )
        return same and other.aggregator.name == "mean" and other.byzantine == mine.byzantine

    return [outcome for outcome in results.outcomes.values() if alike(outcome)]


def _seeds(runs: Sequence[object]) -> str:
    return "" if len(runs) == 1 else f" ({len(runs)} seeds)"


def _merged(
    curves: Sequence[tuple[str, list[dict[int, float]], str, object]],
) -> list[tuple[str, list[dict[int, float]], str, object]]:
    """Equal curves are one line with both names: otherwise the lower one would seem to be missing."""
    merged: list[tuple[str, list[dict[int, float]], str, object]] = []
    for label, lines, colour, dashes in curves:
        twin = next((i for i, other in enumerate(merged) if other[1] == lines), None)
        if twin is None:
            merged.append((label, lines, colour, dashes))
        else:
            merged[twin] = (f"{merged[twin][0]} = {label}", *merged[twin][1:])
    return merged


def _draw(axes: Axes, label: str, lines: Sequence[dict[int, float]], colour: str, dashes: object) -> None:
    steps = [step for step in lines[0] if all(step in line for line in lines)]
    values = np.array([[100 * line[step] for step in steps] for line in lines])
    if len(values) > 1:
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.18, lw=0, zorder=1)
    axes.plot(steps, values.mean(axis=0), color=colour, linestyle=dashes, lw=2.0, label=label, zorder=2)


def _mark_bans(axes: Axes, entry: Series, colour: str, row: int) -> None:
    """A tick for every ban of an attacker, below the curves, in the curve's colour."""
    at = [entry.config.attack.start + step for outcome in entry.outcomes for step in outcome.attacker_bans]
    if at:
        axes.plot(
            at, [0.025 + 0.035 * row] * len(at), linestyle="", marker="|", color=colour, ms=7, mew=1.2,
            transform=axes.get_xaxis_transform(), label="an attacker is banned" if row == 0 else "_", zorder=3,
        )  # fmt: skip
