"""The two things that `python -m btard.watch` does: writes a page of a run, or serves one that follows it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from btard.audit.auditor import audit
from btard.audit.report import AuditError, NotReproduced
from btard.audit.tasks import own_task
from btard.files import write_file
from btard.harness.run_folder import RunFolderError
from btard.protocol.wire import shown
from btard.watch.folder import Run, read_run
from btard.watch.page import content_of, page_of
from btard.watch.serve import Server, Watcher


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
    return {place: shown(finding.checked, 1000) for place, finding in enumerate(report.findings)}


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
