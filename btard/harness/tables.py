"""Text tables: at a terminal, in a log, as Markdown and as CSV. Equal rows give equal text.

A column whose name begins with > holds numbers, which stand to the right; the > is not shown.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Collection, Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

LOG_WIDTH = 160
"""Width of a table, in characters, if no terminal sets it."""


def console() -> Console:
    """Return the console of programs: tables as wide as the terminal, or `LOG_WIDTH` in a file; lines never break."""
    narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, soft_wrap=True, width=None if narrow else LOG_WIDTH)


def table(
    title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], *, note: str = "", markup: bool = False
) -> Table:
    """Return a table for `console`; with `markup`, cells are rich's markup, otherwise they are shown unchanged."""
    made = Table(
        title=escape(title), title_justify="left", title_style="bold", caption=escape(note) or None,
        caption_justify="left", pad_edge=False,
    )  # fmt: skip
    for column in columns:
        made.add_column(
            escape(column.lstrip(">")), justify="right" if column.startswith(">") else "left", overflow="fold"
        )
    for row in rows:
        made.add_row(*(cell if markup else escape(cell) for cell in row))
    return made


def show(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table."""
    console().print(table(title, columns, rows))


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table as Markdown, without a line end after it."""
    heads = [column.lstrip(">") for column in columns]
    rule = ["---:" if column.startswith(">") else "---" for column in columns]
    body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *body))


def bans_said(attackers: int, steps: Collection[int]) -> str:
    """How many of the attackers were banned, and by when; `steps`: those of their bans."""
    return f"{len(steps)} of {attackers} attackers banned" + (f" by step {max(steps)}" if steps else "")


def csv_text(rows: Iterable[Iterable[str]]) -> str:
    """Return rows, the first of them the heading, as CSV (RFC 4180, but with plain line ends)."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
