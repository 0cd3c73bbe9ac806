"""`python -m albert.trainer CONFIG.yaml --out RUN_DIR [--dotted.key value ...]`: one peer."""

import sys

from btard.swarm.trainer import main

if __name__ == "__main__":
    sys.exit(main())
