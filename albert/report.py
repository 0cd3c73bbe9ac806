"""`python -m albert.report DIR [--out FOLDER]`: figures and tables of the finished swarms in DIR.

DIR holds a folder for each swarm, as written by `albert.experiments`; FOLDER is DIR/report. It gets, as PNG and SVG,
loss (over steps, with the attacks and the bans), validation (the loss on other text), peers (in the run), speed and
phases; results.md, a line for each attack; bans.md, a line for each swarm. With --export it also gets swarms.zip with
the data behind all this: `python -m albert.report FOLDER --out FOLDER` then makes the same again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from btard.boundary import Parser, output_folder, program

if TYPE_CHECKING:
    from albert.experiments.results import Swarm


def write_report(swarms: Sequence[Swarm], out: Path) -> list[str]:
    """Write all figures and tables into the folder `out`; returns the names of the figures."""
    from albert.experiments import plots
    from albert.experiments.tables import bans_table, results_table
    from btard.harness.figures import save

    out.mkdir(parents=True, exist_ok=True)
    figures = {
        "loss": plots.loss_figure,
        "validation": plots.validation_figure,
        "peers": plots.peers_figure,
        "speed": plots.speed_figure,
        "phases": plots.phases_figure,
    }
    for name, draw in figures.items():
        save(draw(swarms), out / name, small=True)
    (out / "results.md").write_text(results_table(swarms), encoding="utf-8")
    (out / "bans.md").write_text(bans_table(swarms), encoding="utf-8")
    return list(figures)


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, or 2 after one line about what is wrong."""
    parser = Parser(prog="python -m albert.report", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--out", type=output_folder, metavar="FOLDER", help="by default DIR/report")
    parser.add_argument("--export", action="store_true", help="also pack what the report is made of")
    arguments = parser.parse_args(argv)
    out = arguments.out or arguments.folder / "report"
    from rich.markdown import Markdown

    from albert.experiments.results import export, read_swarms
    from albert.experiments.tables import results_table
    from btard.harness.tables import console

    swarms = read_swarms(arguments.folder)
    figures = write_report(swarms, out)
    if arguments.export:
        export(swarms, out)
    console().print(Markdown(results_table(swarms)))
    print(f"figures: {out}/{{{','.join(figures)}}}.png and .svg   tables: {out}/results.md, bans.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
