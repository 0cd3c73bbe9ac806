"""`python -m resnet.figures RUN_DIR [RUN_DIR ...] --out FILE.png`: test accuracy over steps, and bans, of several runs.

Writes a PNG and an SVG, and with --table prints the runs as a table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from btard.boundary import Mistake, Parser, output_file, program
from btard.harness.figures import save


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
        raise Mistake(f"--labels: expected one per run, {len(arguments.runs)}, got {len(labels)}")
    from btard.harness import tables
    from resnet.curves import draw
    from resnet.table import COLUMNS, bans_text, read_run, row

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
