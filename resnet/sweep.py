"""`python -m resnet.sweep GRID.yaml --out DIR [--dotted.key value ...]`: train all runs of a grid, or continue it.

A grid is a file as described in `resnet.experiments.grid`, such as configs/resnet/small.yaml. DIR gets runs/ (a folder
per run), warmups/ (steps that runs share before their attacks start), and sweep.yaml (the grid, including the changes
from the command line). `python -m resnet.report DIR` makes figures and tables of all finished runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from btard.boundary import Parser, positive, program
from btard.harness.typed_yaml import COMMAND_LINE, ConfigError, read_words
from resnet.config import Config
from resnet.experiments.grid import GRID_FILE, Grid, read_grid


def _share(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"expected I/K with 1 <= I <= K, such as 2/8, got {text!r}")
    return int(index), int(count)


@program("the same command goes on from the last checkpoints")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 if runs failed, 2 after one line about what is wrong, 130 after an interruption."""
    parser = Parser(
        prog="python -m resnet.sweep",
        description=__doc__,
        epilog="Any key of resnet.train can be changed for all runs: --data.path FOLDER, --device cuda, ...",
    )
    parser.add_argument("grid", type=Path, metavar="GRID.yaml", help="or the DIR of a sweep, to continue it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where everything goes; by default DIR itself")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs at a time on this machine (1)")
    parser.add_argument("--shard", type=_share, default=(1, 1), metavar="I/K", help="train the I-th of K shares only")
    parser.add_argument("--only", nargs="+", default=[], metavar="EXPERIMENT", help="only these of the grid")
    parser.add_argument("--plan", action="store_true", help="say what there is to do and how long it takes, and end")
    parser.add_argument("--keep-checkpoints", action="store_true", help="of finished runs, too; they are large")
    arguments, words = parser.parse_known_args(argv)
    grid, out = _grid_of(arguments.grid, arguments.out, words)
    if arguments.only:
        grid = grid.only(arguments.only, COMMAND_LINE)
    from resnet.experiments.plan import make_plan, shard
    from resnet.experiments.sweep import estimate, print_plan, sweep

    if arguments.plan:
        cells = shard(grid.cells, *arguments.shard)
        plan = make_plan(cells, out)
        print_plan(grid, cells, plan, arguments.jobs, estimate(plan.todo(), out, arguments.jobs))
        return 0
    ended = sweep(grid, out, jobs=arguments.jobs, part=arguments.shard, keep_checkpoints=arguments.keep_checkpoints)
    for task, problem in ended.failed.items():
        print(f"error: {task}: {problem}", file=sys.stderr)
    for task in ended.skipped:
        print(f"not trained, as it needs what failed: {task}", file=sys.stderr)
    print(f"figures and tables: python -m resnet.report {out}")
    return 1 if ended.failed else 0


def _grid_of(path: Path, out: Path | None, words: Sequence[str]) -> tuple[Grid, Path]:
    changes = read_words(words, Config)
    if path.is_dir():
        return read_grid(path / GRID_FILE, changes), out or path
    if out is None:
        raise ConfigError(f"{COMMAND_LINE}: --out DIR is missing: the folder that the sweep is written to")
    return read_grid(path, changes), out


if __name__ == "__main__":
    sys.exit(main())
