"""Figures of a sweep: accuracy under each attack as small multiples, and how long attackers survived."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from btard.harness.figures import BLACK, BLUE, BROWN, GREEN, ORANGE, PURPLE, SKY, VERMILION, bare, new_figure
from resnet.experiments.grid import Experiment
from resnet.experiments.outcomes import Outcome, Results, Series
from resnet.experiments.survival import BAND, Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROTOCOL_COLOURS = (BLUE, VERMILION, BLACK, GREEN, PURPLE, ORANGE, SKY)
SERVER_COLOURS = (GREEN, PURPLE, ORANGE, SKY, BLACK, BROWN)
SERVER_DASHES = ((0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (2.5, 1.2)), (0, (8, 2)))
REFERENCE_COLOUR = "0.62"

WIDTH = 10.0
"""Width in inches that a README shows without shrinking the letters."""
PANEL_HEIGHT = 1.95
PANELS_PER_ROW = 3
SURVIVAL_PANELS_PER_ROW = 4
RUG_ROW = 0.035
"""Height of a defence's row of ban marks, as a share of the panel's."""

BAN_MARKS = {True: "an attacker is banned", False: "an honest peer is banned"}
"""Whether the banned peer is Byzantine -> the text in the legend."""

RETURN_MARK = "back to an earlier state"

OVERVIEW, BASELINES = "early", "baselines"
"""Experiments whose figures are combined into the overview, if a grid has them."""


@dataclass(frozen=True)
class Style:
    """How a defence, or one variant of it, is drawn in every panel."""

    colour: str
    dashes: Any
    width: float
    label: str
    """In the legend: its name, and those of other curves that are equal to it in every panel."""


def accuracy_figure(results: Results, experiments: Sequence[Experiment]) -> Figure | None:
    """Return a panel per attack with a curve per defence and variant; None if no attacked run is finished.

    A curve is the mean over the finished seeds, and a band, if there are several, their range. Several experiments are
    drawn over each other, servers' rules thinner then; panels have those attacks that the first one has.
    """
    series = [entry for experiment in experiments for entry in results.series(experiment)]
    # Runs that several experiments have in common are one curve.
    drawn = list({(entry.attack, _name(entry)): entry for entry in series if entry.config.attack.name}.values())
    chosen = {cell.attack for cell in experiments[0].cells}
    attacks = [attack for attack in dict.fromkeys(entry.attack for entry in drawn) if attack in chosen]
    if not attacks:
        return None
    styles = _styles(results, drawn, thin=len(experiments) > 1)
    twins = _twins(drawn)
    drawn = [entry for entry in drawn if _name(entry) not in twins]
    for twin, first in twins.items():
        del styles[twin]
        styles[first] = replace(styles[first], label=f"{styles[first].label} = {twin}")
    columns = min(PANELS_PER_ROW, len(attacks))
    rows = -(-len(attacks) // columns)
    width = WIDTH if columns == PANELS_PER_ROW else 3.6 * columns + 0.4
    legend_columns = max(1, int(width / 2.3))
    legend_rows = -(-(len(styles) + 4) // legend_columns)
    height = (PANEL_HEIGHT if rows > 1 else 2.6) * rows + 0.24 * legend_rows + 0.4
    figure = new_figure(width, height)
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    protocol = {_name(entry) for entry in drawn if entry.protocol}
    rug = [name for name in styles if name in protocol]
    reference = _reference(drawn)
    for axes, attack in zip(panels, attacks, strict=False):
        here = [entry for entry in drawn if entry.attack == attack]
        axes.set_title(attack, fontsize=10, pad=4)
        _draw_reference(axes, reference)
        for entry in here:
            _draw_curve(axes, entry, styles[_name(entry)])
            if entry.protocol:
                _draw_bans(axes, entry, styles[_name(entry)].colour, rug.index(_name(entry)))
                _draw_returns(axes, entry, styles[_name(entry)].colour, rug.index(_name(entry)))
        for start in sorted({entry.config.attack.start for entry in here}):
            axes.axvline(start, color="0.3", lw=0.9, linestyle=(0, (1.5, 1.5)), zorder=0, label="the attack starts")
        bare(axes)
    for axes in panels[len(attacks) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(attacks) - columns) : len(attacks)]:
        axes.tick_params(labelbottom=True)  # also above an empty place of the last row
    _set_limits(panels[0], drawn, len(rug))
    figure.supxlabel("step", fontsize=9)
    figure.supylabel(_accuracy_label(drawn), fontsize=9)
    _legend(figure, panels[: len(attacks)], legend_columns, [style.label for style in styles.values()])
    return figure


def overview_experiments(experiments: Sequence[Experiment]) -> list[Experiment]:
    """Return the experiments of the overview: `early`, or else the first one, and `baselines` if it is there."""
    by_name = {experiment.name: experiment for experiment in experiments}
    first = by_name.get(OVERVIEW, experiments[0])
    return [first, *(by_name[name] for name in (BASELINES,) if name in by_name and by_name[name] is not first)]


def survival_figure(groups: Sequence[Group]) -> Figure:
    """Return a panel per group: the mean number of attackers left over steps from the start on, the law, its band."""
    columns = min(SURVIVAL_PANELS_PER_ROW, len(groups))
    rows = -(-len(groups) // columns)
    figure = new_figure(1.2 + 3.2 * min(columns, 2) + 1.2 * max(0, columns - 2), 0.6 + 2.5 * rows)
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    shown = 1
    for axes, group in zip(panels, groups, strict=False):
        steps, law, left = np.arange(group.steps), group.law(), group.left()
        low, high = group.band()
        n = len(group.samples)
        axes.set_title(f"{group.label}\n{'one draw' if n == 1 else f'mean of {n} draws'}", fontsize=9, pad=4)
        band = f"{BAND:.0%} of such means"
        axes.fill_between(steps, low, high, step="post", color=BLUE, alpha=0.15, lw=0, label=band)
        axes.plot(steps, law, color=BLACK, linestyle=(0, (4, 2)), lw=1.1, label="by the sampling law")
        axes.plot(steps, left, color=BLUE, lw=1.7, drawstyle="steps-post", label="Byzantine peers left")
        alive = np.flatnonzero((left > 0) | (law > 0.05))
        shown = max(shown, int(alive[-1]) + 5 if alive.size else 1)
        bare(axes, grid=None)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    for axes in panels[len(groups) - columns : len(groups)]:
        axes.tick_params(labelbottom=True)
    panels[0].set_xlim(0, shown)
    panels[0].set_ylim(0, 1.03 * max(group.byzantine for group in groups))
    panels[0].yaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel("steps after the attack's start", fontsize=9)
    figure.supylabel("Byzantine peers left", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    order = [2, 1, 0]  # what was measured first, though it is drawn last
    figure.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="outside upper center",
        ncols=3 if columns > 1 else 1, frameon=False, fontsize=8.5,
    )  # fmt: skip
    return figure


def _name(entry: Series) -> str:
    """The name of a curve in the legend; the same in all panels."""
    return ", ".join(filter(None, (entry.defence, entry.variant)))


def _styles(results: Results, drawn: Sequence[Series], *, thin: bool) -> dict[str, Style]:
    """Curve -> its style. A defence has the same one in all figures of a sweep, unless a figure has variants of it."""
    names: dict[str, bool] = {_name(entry): entry.protocol for entry in drawn}
    if not any(entry.variant for entry in drawn):
        everywhere = {cell.defence: cell.config.can_ban for cell in results.grid.cells}
        names = everywhere | names
    wanted = {_name(entry) for entry in drawn}
    protocols, servers = count(), count()
    styles = {}
    for name, protocol in names.items():
        if protocol:
            style = Style(PROTOCOL_COLOURS[next(protocols) % len(PROTOCOL_COLOURS)], "-", 1.5, name)
        else:
            i = next(servers)
            dashes = SERVER_DASHES[i % len(SERVER_DASHES)]
            style = Style(SERVER_COLOURS[i % len(SERVER_COLOURS)], dashes, 0.9 if thin else 1.3, name)
        if name in wanted:
            styles[name] = style
    return styles


def _twins(drawn: Sequence[Series]) -> dict[str, str]:
    """A server's rule -> an earlier one that is the same in every panel, and which would hide it.

    Runs of the protocol are told apart by their rows of bans.
    """
    panels: dict[str, dict[str, list[Any]]] = {}
    for entry in drawn:
        if not entry.protocol:
            panels.setdefault(_name(entry), {})[entry.attack] = [outcome.curve for outcome in entry.outcomes]
    names = list(panels)
    found: dict[str, str] = {}
    for place, name in enumerate(names):
        first = next((other for other in names[:place] if other not in found and panels[other] == panels[name]), None)
        if first is not None:
            found[name] = first
    return found


def _reference(drawn: Sequence[Series]) -> Series | None:
    """The curve whose runs without attack are shown: BTARD with the strongest clipping, else the first that has any."""

    def strength(entry: Series) -> tuple[bool, float]:
        tau = entry.config.protocol.tau if entry.protocol else 0.0
        return not entry.protocol, math.inf if isinstance(tau, str) else float(tau)

    comparable = [entry for entry in drawn if any(outcome.reference for outcome in entry.outcomes)]
    # All attacks have the same one, as far as they are finished: the fullest.
    return min(comparable, key=lambda entry: (*strength(entry), -len(entry.outcomes)), default=None)


def _curves(outcomes: Iterable[Outcome], *, reference: bool) -> tuple[list[int], np.ndarray]:
    """Steps that were measured in all runs, and their accuracies in percent, [runs, steps]."""
    chosen = [outcome.reference if reference else outcome.curve for outcome in outcomes]
    curves = [curve for curve in chosen if curve is not None]
    steps = [step for step in curves[0] if all(step in curve for curve in curves)]
    return steps, np.array([[100 * curve[step] for step in steps] for curve in curves])


def _draw_reference(axes: Axes, entry: Series | None) -> None:
    if entry is None:
        return
    steps, accuracy = _curves(entry.outcomes, reference=True)
    kept = [i for i, step in enumerate(steps) if step <= entry.config.steps]
    borrowed = any(outcome.borrowed for outcome in entry.outcomes)
    label = f"no attack ({'mean' if borrowed else _name(entry)})"
    mean = accuracy.mean(axis=0)
    axes.plot([steps[i] for i in kept], mean[kept], color=REFERENCE_COLOUR, lw=1.0, label=label, zorder=1.5)


def _draw_curve(axes: Axes, entry: Series, style: Style) -> None:
    steps, accuracy = _curves(entry.outcomes, reference=False)
    if len(accuracy) > 1:
        low, high = accuracy.min(axis=0), accuracy.max(axis=0)
        axes.fill_between(steps, low, high, color=style.colour, alpha=0.16, lw=0, zorder=1.2)
    order = 2.5 if entry.protocol else 2
    axes.plot(
        steps, accuracy.mean(axis=0), color=style.colour, linestyle=style.dashes, lw=style.width, label=style.label,
        zorder=order,
    )  # fmt: skip


def _draw_bans(axes: Axes, entry: Series, colour: str, row: int) -> None:
    """At the bottom, in this curve's row, a tick for every ban in any of its runs; a cross for an honest peer."""
    for byzantine, label in BAN_MARKS.items():
        marker = "|" if byzantine else "x"
        at = [ban["step"] for o in entry.outcomes for ban in o.run.bans if ban["byzantine"] is byzantine]
        if at:
            axes.plot(
                at, [(row + 0.7) * RUG_ROW] * len(at), linestyle="", marker=marker, color=colour, ms=4.5, mew=0.9,
                transform=axes.get_xaxis_transform(), label=label, zorder=3,
            )  # fmt: skip


def _draw_returns(axes: Axes, entry: Series, colour: str, row: int) -> None:
    """In the same row, a triangle for every time that any of its runs went back to an earlier state."""
    at = [step for o in entry.outcomes for step, _ in o.run.returns]
    if at:
        axes.plot(
            at, [(row + 0.7) * RUG_ROW] * len(at), linestyle="", marker="<", color=colour, ms=3.5,
            transform=axes.get_xaxis_transform(), label=RETURN_MARK, zorder=3,
        )  # fmt: skip


def _set_limits(axes: Axes, drawn: Sequence[Series], rug_rows: int) -> None:
    first = min(entry.config.attack.start for entry in drawn)
    last = max(entry.config.steps for entry in drawn)
    # Where most of a run was before its attack, that part is left out but for a little.
    left = first - 0.12 * (last - first) if first > last - first else 0
    visible = [
        100 * accuracy
        for entry in drawn
        for outcome in entry.outcomes
        for curve in (outcome.curve, outcome.reference or {})
        for step, accuracy in curve.items()
        if left <= step <= last
    ]
    top = max(visible) * 1.05
    # From zero, so that heights compare, and the rug below it.
    room = (rug_rows + 0.4) * RUG_ROW
    axes.set_ylim(-room * top / (1 - room), top)
    axes.set_xlim(left, last + 0.01 * (last - left))  # the last measurement is not cut in half
    step = next(step for step in (1, 2, 5, 10, 20) if top / step <= 6)
    axes.set_yticks(np.arange(0, top, step))


def _accuracy_label(drawn: Sequence[Series]) -> str:
    data = {outcome.summary["data"] for entry in drawn for outcome in entry.outcomes}
    return f"test accuracy on {data.pop()}, %" if len(data) == 1 else "test accuracy, %"


def _legend(figure: Figure, panels: Sequence[Axes], columns: int, curves: Sequence[str]) -> None:
    """One for all panels, outside of them: first `curves` in this order, then the rest."""
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            # In the colours of all curves.
            if isinstance(handle, Line2D) and label in (*BAN_MARKS.values(), RETURN_MARK):
                handle = Line2D([], [], linestyle="", marker=handle.get_marker(), color="0.3", ms=6)
            entries.setdefault(label, handle)
    order = [*curves, *sorted(entries.keys() - set(curves), reverse=True)]
    figure.legend(
        [entries[label] for label in order], order, loc="outside upper center", ncols=columns, frameon=False,
        fontsize=8.5, handlelength=2.6,
    )  # fmt: skip
