"""`python -m scripts.golden compare COMMIT`: whether this tree does what that commit did, down to the bytes.

`check` compares this tree with the file in the repository, which holds what is the same on every machine; `write`
writes that file anew.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from btard.boundary import Parser, positive, program
from scripts.golden import file
from scripts.golden.compare import ROOT, GoldenError, columns, compare, failed, report
from scripts.golden.differences import SECTIONS, Record, differences, key_of


def parser() -> argparse.ArgumentParser:
    runs = Parser(add_help=False)
    runs.add_argument("--only", action="append", choices=SECTIONS, help="these runs alone (may be given again)")
    runs.add_argument(
        "--seeds", type=positive, default=file.SEEDS, help="seeds for each row of the matrix (default: 3)"
    )
    runs.add_argument("--match", default="", metavar="TEXT", help="the runs alone whose name holds this text")
    runs.add_argument("--jobs", type=positive, default=2, help="processes in all (default: 2)")
    top = Parser(prog="python -m scripts.golden", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    compared = commands.add_parser("compare", parents=[runs], help="run a commit's tree and this one, and compare")
    compared.add_argument("commit")
    compared.add_argument("--keep", type=Path, metavar="FILE", help="write both records to this JSON file")
    commands.add_parser("record", parents=[runs], help="write the record of this tree to standard output")
    commands.add_parser("check", parents=[runs], help=f"compare this tree with {file.FILE.relative_to(ROOT)}")
    written = commands.add_parser("write", help="write that file anew")
    written.add_argument("--jobs", type=positive, default=2, help="processes (default: 2)")
    return top


def portable(sections: Sequence[str], seeds: int, match: str, jobs: int) -> Record:
    """Make the runs, and return what the golden file keeps of them, in the file's order."""
    from scripts.golden.recorder import lines, work_of

    work = work_of([name for name in sections if name in file.SECTIONS], seeds, match)
    with Progress(*columns(), console=Console(stderr=True)) as progress:
        made = progress.track(lines(work, jobs), total=len(work), description="this tree")
        fields = {key_of(line): file.portable(line["fields"]) for line in made}
    return {key: fields[key] for key in ((case.section, case.name, case.seed) for case in work)}


def check(sections: Sequence[str], seeds: int, match: str, jobs: int) -> int:
    """Print what differs from the file; 1 if anything does."""
    old, new = file.read(sections, seeds, match), portable(sections, seeds, match, jobs)
    found = list(differences(old, new))
    report(old, new, found)
    return 1 if found or failed(new) else 0


@program("the same command begins again")
def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    if options.command == "write":
        file.write(portable(file.SECTIONS, file.SEEDS, "", options.jobs))
        print(f"written: {file.FILE}")
        return 0
    sections = options.only or list(SECTIONS)
    if options.command == "record":
        from scripts.golden.recorder import write_lines

        write_lines(sections, options.seeds, options.match, options.jobs)
        return 0
    if options.command == "check":
        return check(sections, options.seeds, options.match, options.jobs)
    chosen = ["--seeds", str(options.seeds), "--match", options.match, *(f"--only={name}" for name in sections)]
    try:
        return compare(options.commit, chosen, options.jobs, options.keep)
    except KeyboardInterrupt:
        return 130
    except GoldenError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # worktree and recorders end with this process
    sys.exit(main())
