"""`python -m btard.audit RUN_DIR [--task module:function]`: checks whether the ledger of a run says what happened.

The auditor took no part in the run. It checks every signature, replays the steps that removed somebody with the peers'
own code, and compares the outcome with the ledger. Everything in the folder is hostile until checked.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from btard.audit.auditor import audit
from btard.audit.report import AuditError, NotReproduced
from btard.audit.settings import read_settings, read_task
from btard.boundary import Parser, program
from btard.protocol.wire import Malformed, shown
from btard.task import Task

LINE = 1000
"""Maximum length of a printed line: the folder may be a stranger's."""

KNOWN = frozenset({"resnet.audit:task_of", "albert.audit:task_of"})
"""The functions that may be called because a run folder names them."""


def load_task(name: str, folder: Path) -> Task:
    """The task that the function `name` ("module:function") creates from the run in `folder`; else ValueError."""
    module, _, function = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--task {name}: {error}; expected module:function") from None
    task: Task = make(folder)
    return task


def own_task(folder: Path) -> Task | None:
    """The task that the run names, if it is one of ours and can be created here; otherwise a line says why not.

    The folder is hostile: nothing else that it names is called.
    """
    try:
        name = read_task(folder)
        if name not in KNOWN:
            return None
        task = load_task(name, folder)
        _, d, _ = read_settings(folder)
        if task.d != d:
            raise ValueError(f"it has {task.d} parameters, the run {d}")
    except Malformed:
        return None  # the audit says it
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        _not_recomputed(f"the run's task cannot be made here: {error}")
        return None
    return task


def _not_recomputed(reason: str) -> None:
    line = " ".join(ascii(reason)[1:-1].split())
    print(f"gradients are not recomputed: {line:.300}", file=sys.stderr)


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m btard.audit", description="Check the ledger of a finished run.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--task",
        metavar="MODULE:FUNCTION",
        help="makes the run's task, to compute gradients again; by default what the run names, if it is one of "
        f"{', '.join(sorted(KNOWN))}; '' for none",
    )
    options = parser.parse_args(argv)
    try:
        if options.task is not None:
            report = audit(options.run_dir, load_task(options.task, options.run_dir) if options.task else None)
        else:
            try:
                report = audit(options.run_dir, own_task(options.run_dir))
            except NotReproduced as error:
                _not_recomputed(str(error))
                report = audit(options.run_dir)
    except (AuditError, ValueError) as error:
        print(f"refused: {shown(error, LINE)}", file=sys.stderr)
        return 1
    for finding in report.findings:
        print(shown(finding, LINE))
    for note in report.notes:
        print(shown(note, LINE))
    print(report.summary)
    return 0


if __name__ == "__main__":
    sys.exit(main())
