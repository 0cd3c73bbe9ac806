"""How often a progress bar is drawn."""

import sys


def interval() -> float:
    """Return the seconds between two updates of a bar: few where somebody looks, many in a log of a line for each."""
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return 0.5 if watched else 30
