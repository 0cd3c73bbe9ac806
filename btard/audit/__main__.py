"""`python -m btard.audit RUN_DIR [--task module:function]`: whether the ledger of a run says what really happened.

The auditor took no part in the run. It checks every signature, replays the steps that removed somebody with the peers'
own code, and compares the outcome with the ledger. Everything in the folder is hostile until checked.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from btard.audit.auditor import audit
from btard.audit.report import AuditError
from btard.protocol.wire import shown
from btard.task import Task

LINE = 1000
"""Characters of a line that is printed: the folder may be a stranger's."""


def load_task(name: str, folder: Path) -> Task:
    """The task that the function `name` ("module:function") makes of the run in `folder`; else ValueError."""
    module, _, function = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--task {name}: {error}; expected module:function") from None
    task: Task = make(folder)
    return task


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m btard.audit", description="Check the ledger of a finished run.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--task", metavar="MODULE:FUNCTION", help="makes the run's task, to compute gradients again")
    options = parser.parse_args(argv)
    try:
        task = None if options.task is None else load_task(options.task, options.run_dir)
        report = audit(options.run_dir, task)
    except (AuditError, ValueError) as error:
        print(f"refused: {shown(error, LINE)}", file=sys.stderr)
        return 1
    for finding in report.findings:
        print(shown(finding, LINE))
    print(report.summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
