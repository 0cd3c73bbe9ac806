"""How often a progress bar is drawn, how wide a table is in a log, and how long something takes in words."""

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


def duration(seconds: float) -> str:
    """Return a time for people: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
