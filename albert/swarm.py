"""`python -m albert.swarm CONFIG.yaml --out RUN_DIR [--dotted.key value ...]`: a whole swarm on this machine."""

import sys
from collections.abc import Sequence

from albert.config import TASK
from btard.swarm.commands import run


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of `python -m btard.swarm local --task albert.task:make`."""
    return run("local", argv, TASK, "python -m albert.swarm", extra="experiments")


if __name__ == "__main__":
    sys.exit(main())
