"""`python -m albert.coordinator CONFIG.yaml --out RUN_DIR [--dotted.key value ...]`: where its swarm meets."""

import sys

from btard.swarm.coordinator import main

if __name__ == "__main__":
    sys.exit(main())
