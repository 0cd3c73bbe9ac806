"""`python -m albert.swarm CONFIG.yaml --out RUN_DIR [--dotted.key value ...]`: a whole swarm on this machine."""

import sys

from btard.swarm.local import main

if __name__ == "__main__":
    sys.exit(main())
