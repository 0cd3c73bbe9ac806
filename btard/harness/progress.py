"""How often a progress bar is drawn, and how wide a table is in a log."""

import sys

from rich.console import Console


def interval() -> float:
    """Return the seconds between two updates of a bar: few where somebody looks, many in a log of a line for each."""
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    return 0.5 if watched else 30


def console_for_all() -> Console:
    """Return a console for tables: as wide as the window or, in a log, 120 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=120)
