"""Runs `btard.swarm.commands`."""

import sys

from btard.swarm.commands import main

if __name__ == "__main__":
    sys.exit(main())
