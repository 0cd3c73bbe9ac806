"""`python -m scripts.golden compare COMMIT`: whether this tree does what that commit did, down to the bytes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scripts.golden.compare import GoldenError, compare
from scripts.golden.recorder import write_lines
from scripts.golden.runs import SECTIONS


def parser() -> argparse.ArgumentParser:
    runs = argparse.ArgumentParser(add_help=False)
    runs.add_argument("--only", action="append", choices=SECTIONS, help="these runs alone (may be given again)")
    runs.add_argument("--seeds", type=int, default=3, help="seeds for each row of the matrix (default: 3)")
    runs.add_argument("--match", default="", metavar="TEXT", help="the runs alone whose name holds this text")
    runs.add_argument("--jobs", type=int, default=2, help="processes in all (default: 2)")
    top = argparse.ArgumentParser(prog="python -m scripts.golden", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    compared = commands.add_parser("compare", parents=[runs], help="run a commit's tree and this one, and compare")
    compared.add_argument("commit")
    compared.add_argument("--keep", type=Path, metavar="FILE", help="write both records to this JSON file")
    commands.add_parser("record", parents=[runs], help="write the record of this tree to standard output")
    return top


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    sections = options.only or list(SECTIONS)
    if options.command == "record":
        write_lines(sections, options.seeds, options.match, options.jobs)
        return 0
    chosen = ["--seeds", str(options.seeds), "--match", options.match, *(f"--only={name}" for name in sections)]
    try:
        return compare(options.commit, chosen, options.jobs, options.keep)
    except GoldenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
