"""`python -m albert.coordinator CONFIG.yaml --out RUN_DIR [--dotted.key value ...]`: where its swarm meets."""

import sys
from collections.abc import Sequence

from albert.commands import run
from btard.boundary import program


@program("the peers go on without it: the same command watches them again")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of `python -m btard.swarm coordinator --task albert.task:make`."""
    return run("coordinator", argv, "python -m albert.coordinator")


if __name__ == "__main__":
    sys.exit(main())
