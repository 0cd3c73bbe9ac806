"""`python -m albert.trainer CONFIG.yaml --out RUN_DIR [--dotted.key value ...]`: one peer."""

import sys
from collections.abc import Sequence

from albert.config import TASK
from btard.swarm.commands import run


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of `python -m btard.swarm trainer --task albert.task:make`."""
    return run("trainer", argv, TASK, "python -m albert.trainer", extra="experiments")


if __name__ == "__main__":
    sys.exit(main())
