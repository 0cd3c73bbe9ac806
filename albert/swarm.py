"""`python -m albert.swarm CONFIG.yaml --out RUN_DIR [--dotted.key value ...]`: a whole swarm on this machine."""

import sys
from collections.abc import Sequence

from albert.commands import run
from btard.boundary import program


@program("the same command goes on from the last checkpoints")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of `python -m btard.swarm local --task albert.task:make`."""
    return run("local", argv, "python -m albert.swarm")


if __name__ == "__main__":
    sys.exit(main())
