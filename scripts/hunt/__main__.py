"""`python -m scripts.hunt --minutes 30 --jobs 2`: search for a case in which an invariant of the protocol breaks.

Findings are reduced and written to OUT/findings.jsonl, one per line; `--replay FILE` runs such lines again, and exits
with 1 if one of them still breaks something. `--continue` continues the last search on this commit. `--switch NAME`
removes a fix and stops at the first finding; `--all-switches` does so for each and writes a table. See docs/hunt.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from btard.boundary import Parser, output_folder, program
from scripts.hunt import coverage
from scripts.hunt.switches import SWITCHES


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="python -m scripts.hunt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--minutes", type=float, default=10.0, help="minutes of search (default: 10), CPU time with --jobs 1"
    )
    made.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per CPU core)")
    made.add_argument("--seed", type=int, default=0, help="names the random streams of the search (default: 0)")
    made.add_argument(
        "--mode",
        choices=("safety", "liveness"),
        default="safety",
        help="safety: mishaps at any time (default); liveness: they end, and every step after that has to complete",
    )
    made.add_argument(
        "--out", type=output_folder, default=Path("runs/hunt"), help="folder of the results (default: runs/hunt)"
    )
    made.add_argument("--replay", type=Path, metavar="FILE", help="run the cases in this file instead")
    made.add_argument("--continue", dest="go_on", action="store_true", help="add to the results in OUT, of this commit")
    made.add_argument("--distil", type=Path, metavar="FILE", help="write the few cases of OUT that reach most to FILE")
    made.add_argument("--switch", choices=sorted(SWITCHES), help="take this fix out, and stop at the first finding")
    made.add_argument("--all-switches", action="store_true", help="measure the CPU time to find each, --jobs at once")
    return made


@program("the same command begins again")
def main(words: Sequence[str] | None = None) -> int:
    args = parser().parse_args(words)
    if args.minutes <= 0 or args.jobs < 1:
        print("error: --minutes and --jobs must be positive", file=sys.stderr)
        return 2
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.all_switches:
        from scripts.hunt import measure

        return measure.all_switches(args.minutes, args.jobs, args.seed, args.out)
    coverage.install(SWITCHES[args.switch].edits if args.switch else ())
    from scripts.hunt import program

    try:
        if args.replay is not None:
            return program.replay_file(args.replay)
        if args.distil is not None:
            return program.distil(args.out, args.distil)
        return program.search(args)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
