"""The figure of several runs: test accuracy over steps, where attacks start, and bans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from btard.harness.figures import COLOURS, DASHES, bare, new_figure
from btard.harness.run_folder import RunFolderError
from resnet.table import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCH_PER_LABEL = 0.26


def draw(runs: Sequence[Run]) -> Figure:
    """Return the figure: a curve per run, a line where attacks start, marks on the curve for bans and returns.

    Raises RunFolderError if a run has no measured accuracy yet.
    """
    for run in runs:
        if not run.accuracy[0]:
            raise RunFolderError(f"{run.path}: no test accuracy was measured yet; let it run longer")
    legend = INCH_PER_LABEL * -(-len(runs) // _columns(runs))
    figure = new_figure(7.2, 3.4 + legend)
    axes = figure.subplots()
    _mark_attacks(axes, runs)
    for run, colour, dashes in zip(runs, cycle(COLOURS), cycle(DASHES), strict=False):
        steps, accuracy = run.accuracy
        percent = [100 * share for share in accuracy]
        axes.plot(steps, percent, color=colour, linestyle=dashes, lw=1.6, label=run.label)
        _mark_bans(axes, run, colour)
        _mark_returns(axes, run, colour)
    data = {run.config.data.label or run.config.data.name for run in runs}
    axes.set_ylabel(f"test accuracy on {data.pop()}, %" if len(data) == 1 else "test accuracy, %")
    axes.set_xlabel("step")
    # From zero, so that heights compare; up to 100 only where curves come near it.
    highest = 100 * max(max(run.accuracy[1]) for run in runs)
    axes.set_ylim(0, 101 if highest > 70 else 10 * math.ceil(highest / 10 + 0.1))
    axes.set_xlim(0, max(run.accuracy[0][-1] for run in runs))
    bare(axes)
    # Outside the axes, where no curve can be.
    figure.legend(loc="outside upper left", ncols=_columns(runs), frameon=False, fontsize=9, handlelength=2.6)
    return figure


def _columns(runs: Sequence[Run]) -> int:
    """Legend entries side by side: as many as the figure is wide for."""
    return max(1, min(3, len(runs), 96 // (8 + max(len(run.label) for run in runs))))


def _mark_attacks(axes: Axes, runs: Sequence[Run]) -> None:
    starts = sorted({run.config.attack.start for run in runs if run.config.attack.name is not None})
    for start in starts:
        axes.axvline(start, color="0.45", lw=0.9, linestyle=(0, (2, 2)), zorder=0)
    if starts:
        # Low, where an accuracy above guessing leaves room.
        axes.annotate("attack starts", (starts[0], 1.5), (4, 0), textcoords="offset points", fontsize=8, color="0.35")


def _mark_bans(axes: Axes, run: Run, colour: str) -> None:
    """A ring on the run's curve at every ban, a cross if the banned peer was honest."""
    steps, accuracy = run.accuracy
    for honest, marker, name in ((False, "o", "a ban"), (True, "x", "a ban of an honest peer")):
        at = [ban["step"] for ban in run.bans if (ban.get("byzantine") is False) is honest]
        if at:
            height = [100 * share for share in np.interp(at, steps, accuracy)]
            taken = name in axes.get_legend_handles_labels()[1]
            label = "_nolegend_" if taken else name
            axes.plot(at, height, marker, color=colour, mfc="white", ms=4.5, mew=1.2, label=label, zorder=3)


def _mark_returns(axes: Axes, run: Run, colour: str) -> None:
    """A triangle on the run's curve where it went back to an earlier state."""
    at = [step for step, _ in run.returns]
    if at:
        height = [100 * share for share in np.interp(at, *run.accuracy)]
        name = "back to an earlier state"
        label = "_nolegend_" if name in axes.get_legend_handles_labels()[1] else name
        axes.plot(at, height, "<", color=colour, ms=4.5, label=label, zorder=3)
