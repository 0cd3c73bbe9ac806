"""`python -m albert.experiments GRID.yaml --out DIR [--dotted.key value ...]`: a series of swarms, or go on with it.

GRID.yaml says which, such as configs/albert/experiments/tiny.yaml: a baseline from scratch, and attacks that begin from
its checkpoints, with several starts, defences and seeds. DIR gets a folder for each swarm; those that are finished are
skipped. With --aws they run on AWS, one after another: each is launched, fetched into DIR, and stopped.
`python -m albert.report DIR` makes figures and tables of whatever is finished.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from albert.config import Config
from albert.experiments.grid import read_grid
from albert.experiments.local import LocalSwarms
from albert.experiments.series import print_plan, run_series
from btard.harness.run_folder import RunFolderError
from btard.harness.settings import exit_with
from btard.harness.typed_yaml import COMMAND_LINE, ConfigError, read_words


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 if swarms failed, 2 after one line about what is wrong, 130 after an interruption."""
    parser = argparse.ArgumentParser(
        prog="python -m albert.experiments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Any key of albert.swarm can be changed for all swarms: --data.path FOLDER, --peers 5, ...",
        allow_abbrev=False,
    )
    parser.add_argument("grid", type=Path, metavar="GRID.yaml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where everything goes")
    parser.add_argument("--only", nargs="+", default=[], metavar="ATTACK", help="only these of the grid")
    parser.add_argument("--plan", action="store_true", help="say what there is to do, and end")
    arguments, words = parser.parse_known_args(argv)
    try:
        grid = read_grid(arguments.grid, read_words(words, Config))
        if arguments.only:
            grid = grid.only(arguments.only, COMMAND_LINE)
        print_plan(grid, arguments.out)
        if arguments.plan:
            return 0
        failed = run_series(grid, arguments.out, LocalSwarms())
    except (ConfigError, RunFolderError) as error:
        exit_with(error)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        return 130
    for name, problem in failed.items():
        print(f"error: {name}: {problem}", file=sys.stderr)
    print(f"figures and tables: python -m albert.report {arguments.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
