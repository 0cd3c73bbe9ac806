"""`python -m albert.experiments GRID.yaml --out DIR [--dotted.key value ...]`: run a series of swarms, or continue it.

GRID.yaml lists them, such as configs/albert/experiments/tiny.yaml: a baseline from scratch, and attacks that start from
its checkpoints, with several starts, defences and seeds. DIR gets a folder for each swarm; finished swarms are skipped.
With --aws CLOUD.yaml (as for `python -m albert.cloud`) they run on AWS, one by one: each is launched, waited for,
fetched into DIR, and removed; --aws.KEY VALUE changes a key of CLOUD.yaml.
`python -m albert.report DIR` makes figures and tables of all finished swarms.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from albert.config import Config
from albert.experiments.grid import read_grid
from btard.boundary import Parser, program
from btard.harness.typed_yaml import COMMAND_LINE, read_words

AWS = "--aws."


@program("the same command goes on")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 if swarms failed, 2 after one line about what is wrong, 130 after an interruption."""
    parser = Parser(
        prog="python -m albert.experiments",
        description=__doc__,
        epilog="Any key of albert.swarm can be changed for all swarms: --data.path FOLDER, --peers 5, ...",
    )
    parser.add_argument("grid", type=Path, metavar="GRID.yaml")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where everything goes")
    parser.add_argument("--only", nargs="+", default=[], metavar="ATTACK", help="only these of the grid")
    parser.add_argument("--plan", action="store_true", help="say what there is to do, and end")
    parser.add_argument("--aws", metavar="CLOUD.yaml", help="run them on AWS, with the machines of this file")
    parser.add_argument("--data", type=Path, metavar="DATA", help="with --aws: copy this prepared folder there first")
    parser.add_argument("--stop", action="store_true", help="with --aws: remove all of the series there, and end")
    arguments, words = parser.parse_known_args(argv)
    words, cloud = split_words(words)
    grid = read_grid(arguments.grid, read_words(words, Config))
    if arguments.only:
        grid = grid.only(arguments.only, COMMAND_LINE)
    from albert.experiments.series import place_of, print_plan, run_series

    place = place_of("local" if arguments.aws is None else "aws", arguments.aws, cloud)
    if arguments.stop:
        place.clean_up(grid, arguments.out)
        return 0
    print_plan(grid, arguments.out)
    place.describe(grid, arguments.out)
    if arguments.plan:
        return 0
    if arguments.data is not None:
        place.put_data(arguments.data)
    failed = run_series(grid, arguments.out, place)
    for name, problem in failed.items():
        print(f"error: {name}: {problem}", file=sys.stderr)
    print(f"figures and tables: python -m albert.report {arguments.out}")
    return 1 if failed else 0


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words for the swarms, and those that begin with --aws., without that."""
    own: list[str] = []
    cloud: list[str] = []
    target = own
    for word in words:
        if word.startswith("--"):
            target = cloud if word.startswith(AWS) else own
        target.append(f"--{word.removeprefix(AWS)}" if word.startswith(AWS) else word)
    return own, cloud


if __name__ == "__main__":
    sys.exit(main())
