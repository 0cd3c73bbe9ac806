"""`python -m albert.trainer CONFIG.yaml --out RUN_DIR [--dotted.key value ...]`: one peer."""

import sys
from collections.abc import Sequence

from albert.commands import run
from btard.boundary import program


@program("the same command goes on")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of `python -m btard.swarm trainer --task albert.task:make`."""
    return run("trainer", argv, "python -m albert.trainer")


if __name__ == "__main__":
    sys.exit(main())
