"""`python -m btard.audit RUN_DIR [--task module:function]`: checks whether the ledger of a run says what happened.

The auditor took no part in the run. It checks every signature, replays the steps that removed somebody with the peers'
own code, and compares the outcome with the ledger. Everything in the folder is hostile until checked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from btard.boundary import Parser, program

LINE = 1000
"""Maximum length of a printed line: the folder may be a stranger's."""


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m btard.audit", description="Check the ledger of a finished run.")
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--task",
        metavar="MODULE:FUNCTION",
        help="makes the run's task, to compute gradients again; by default what the run names; '' for none",
    )
    options = parser.parse_args(argv)
    from btard.audit.auditor import audit
    from btard.audit.report import AuditError, NotReproduced
    from btard.audit.tasks import load_task, not_recomputed, own_task
    from btard.protocol.wire import shown

    try:
        if options.task is not None:
            report = audit(options.run_dir, load_task(options.task, options.run_dir) if options.task else None)
        else:
            try:
                report = audit(options.run_dir, own_task(options.run_dir))
            except NotReproduced as error:
                not_recomputed(str(error))
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
