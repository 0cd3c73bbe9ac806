"""`python -m resnet.report DIR`: figures and tables of a sweep, finished or not.

DIR was written by `python -m resnet.sweep`, or is an export of it. Only result files are read: the data set and
checkpoints need not be there. Equal files give equal figures and tables, to the byte.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from btard.boundary import Parser, output_folder, program
from btard.harness.typed_yaml import COMMAND_LINE


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, or 2 after one line about what is wrong."""
    parser = Parser(prog="python -m resnet.report", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of a sweep, or an export of one")
    parser.add_argument("--out", type=output_folder, metavar="OUT", help="where the report goes (DIR/report)")
    parser.add_argument("--only", nargs="+", default=[], metavar="EXPERIMENT", help="only these of the grid")
    parser.add_argument("--tensorboard", action="store_true", help="write OUT/tensorboard, a run per run of the sweep")
    parser.add_argument("--wandb", metavar="PROJECT", help="log the runs to a project of Weights & Biases")
    parser.add_argument(
        "--export", type=output_folder, metavar="FOLDER", help="write what a repository should keep of the sweep"
    )
    arguments = parser.parse_args(argv)
    from resnet.experiments.export import export
    from resnet.experiments.outcomes import read_results, read_sweep
    from resnet.experiments.report import patient_bar, print_results, status, write_report
    from resnet.experiments.tracking import write_tensorboard, write_wandb

    out: Path = arguments.out or arguments.folder / "report"
    grid = read_sweep(arguments.folder)
    chosen = grid.only(arguments.only, COMMAND_LINE) if arguments.only else grid
    with patient_bar(len(grid.cells), "runs") as done:
        results = read_results(arguments.folder, grid, done.advance)
    outcomes = results.of(chosen.experiments)
    if arguments.export:
        with patient_bar(len(results.outcomes), "export") as done:
            export(results, arguments.folder, arguments.export, done.advance)
    warnings = write_report(results, chosen.experiments, out)
    if arguments.tensorboard:
        with patient_bar(len(outcomes), "TensorBoard") as done:
            write_tensorboard(results, outcomes, out / "tensorboard", done.advance)
    if arguments.wandb:
        with patient_bar(len(outcomes), "W&B") as done:
            write_wandb(results, outcomes, arguments.wandb, out, done.advance)
    print_results(results, chosen.experiments)
    print(status(outcomes, len(chosen.cells)).replace("*", ""))
    print(f"report: {out}/report.md   tables for programs: {out}/*.csv")
    if arguments.tensorboard:
        print(f"curves: tensorboard --logdir {out}/tensorboard")
    if arguments.wandb:
        print(f"W&B: project {arguments.wandb}, files in {out}/wandb")
    if arguments.export:
        print(f"export: {arguments.export}")
    for line in warnings:
        print(f"WARNING: {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
