"""`python -m btard.watch RUN_DIR [--serve | --out page.html]`: a run as a page for any browser."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from btard.audit.auditor import audit
from btard.audit.report import AuditError, NotReproduced
from btard.audit.tasks import own_task
from btard.boundary import Parser, program
from btard.files import write_file
from btard.harness.run_folder import RunFolderError
from btard.harness.settings import exit_with
from btard.protocol.wire import shown
from btard.watch.folder import Run, read_run
from btard.watch.page import content_of, page_of
from btard.watch.serve import Server, Watcher

PORT = 8642


def audited(run: Run) -> Mapping[int, str] | str:
    """Place in the ledger -> what an audit checked in the entry; or a sentence that says why there is nothing."""
    if run.evidence is None:
        return "No audit: this folder has no evidence."
    try:
        try:
            report = audit(run.evidence, own_task(run.evidence))
        except NotReproduced:
            report = audit(run.evidence)
    except (AuditError, ValueError, OSError) as error:
        return f"The audit refuses this run: {shown(error, 400)}"
    if [finding.entry for finding in report.findings] != run.entries:
        return "No audit: the evidence is of a ledger that is not this one."
    return {place: finding.checked for place, finding in enumerate(report.findings)}


def write(folder: Path, out: Path | None, *, audits: bool = False) -> Path:
    """Write the page of the run in `folder`, by default to page.html next to its files; returns the path.

    Errors: RunFolderError if there is no run, or the file cannot be written.
    """
    run = read_run(folder)
    target = folder / "page.html" if out is None else out
    text = page_of(content_of(run, audited(run) if audits else None))
    try:
        write_file(target, text)
    except OSError as error:
        raise RunFolderError(f"{target}: cannot be written: {error.strerror}; choose another --out") from None
    return target


def serve(folder: Path, port: int) -> int:
    """Serve the page until Ctrl-C. Errors: RunFolderError if there is no run, or the port is taken."""
    watcher = Watcher(folder)
    try:
        server = Server(watcher, port)
    except (OSError, OverflowError) as error:
        raise RunFolderError(f"--port {port}: {error}; 0 takes any that is free") from None
    with server:
        print(f"watching {folder} at {server.address} (this machine alone; Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended; the run itself is not touched", file=sys.stderr)
    return 0


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
    try:
        if options.serve:
            return serve(options.run_dir, options.port)
        print(f"page: {write(options.run_dir, options.out, audits=options.audit)} (open it in any browser)")
    except RunFolderError as error:
        exit_with(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
