"""`python -m resnet.figures RUN_DIR [RUN_DIR ...] --out FILE.png`: test accuracy over steps, and bans, of several runs.

Writes a PNG and an SVG, and with --table prints the runs as a table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from btard.boundary import Parser, output_file, program
from btard.harness import tables
from btard.harness.figures import COLOURS, DASHES, bare, new_figure, save
from btard.harness.run_folder import RunFolderError
from resnet.table import COLUMNS, Run, bans_text, read_run, row

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


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code 0; ends the process with 2 after one line about what is wrong."""
    parser = Parser(prog="python -m resnet.figures", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--out", type=output_file, required=True, metavar="FILE.png", help="a FILE.svg is written beside it"
    )
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="one per run; by default their settings say it")
    parser.add_argument("--table", action="store_true", help="print the runs as a table, and every ban")
    parser.add_argument("--markdown", type=output_file, metavar="FILE.md", help="write the table as Markdown")
    arguments = parser.parse_args(argv)
    labels = arguments.labels or [None] * len(arguments.runs)
    if len(labels) != len(arguments.runs):
        raise RunFolderError(f"--labels: expected one per run, {len(arguments.runs)}, got {len(labels)}")
    runs = [read_run(path, label) for path, label in zip(arguments.runs, labels, strict=True)]
    written = [*save(draw(runs), arguments.out)]
    if arguments.markdown:
        arguments.markdown.write_text(tables.markdown(COLUMNS, map(row, runs)) + "\n", encoding="utf-8")
        written.append(arguments.markdown)
    if arguments.table:
        tables.show("", COLUMNS, map(row, runs))
        for run in runs:
            if run.bans:
                print(f"\nBans under {run.label}:\n{bans_text(run)}")
    print(f"figure: {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
