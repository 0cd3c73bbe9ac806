"""`python -m btard.watch RUN_DIR [--serve | --out page.html]`: a run as a page for any browser."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from btard.boundary import Parser, program

PORT = 8642


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m btard.watch",
        description="Show a run as a page: what each peer did in each step, who was removed and why, time and bytes.",
        epilog="example: python -m btard.watch runs/quickstart/btard --out btard.html",
    )
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="what was given as --out: a simulation, torchrun, or a swarm"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--serve", action="store_true", help="follow a running run, in a browser on this machine")
    how.add_argument("--out", type=Path, metavar="PAGE.html", help="the file to write; by default RUN_DIR/page.html")
    parser.add_argument("--port", type=int, default=PORT, help=f"of --serve; 0: any that is free (default {PORT})")
    parser.add_argument(
        "--audit", action="store_true", help="audit the ledger first, and say of each entry what was checked"
    )
    options = parser.parse_args(argv)
    if options.serve and options.audit:
        parser.error("--audit is for a page that is written: leave out --serve")
    from btard.watch.commands import serve, write

    if options.serve:
        return serve(options.run_dir, options.port)
    print(f"page: {write(options.run_dir, options.out, audits=options.audit)} (open it in any browser)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
