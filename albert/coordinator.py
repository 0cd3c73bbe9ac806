"""`python -m albert.coordinator CONFIG.yaml --out RUN_DIR [--dotted.key value ...]`: where its swarm meets."""

import sys
from collections.abc import Sequence

from albert.config import TASK
from btard.swarm.commands import run


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of `python -m btard.swarm coordinator --task albert.task:make`."""
    return run("coordinator", argv, TASK, "python -m albert.coordinator", extra="experiments")


if __name__ == "__main__":
    sys.exit(main())
