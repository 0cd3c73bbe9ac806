"""A progress bar that stays in its place at a terminal and in a notebook, and is a line now and then in a log."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

LOG_SECONDS = 600.0
"""Between two lines in a log."""


class Bar:
    """A bar of something that takes long: its name, how much is done, and a text that says more."""

    def __init__(self, out: Console, name: str) -> None:
        self.out, self.name = out, name
        self._live: Live | None = None
        self._handle: Any = None
        self._logged: float | None = None

    def __enter__(self) -> "Bar":
        if self.out.is_terminal and not self.out.is_jupyter:
            self._live = Live(console=self.out, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, done: float, total: float | None, text: str, *, last: bool = False) -> None:
        """Draw the bar anew; in a log, if the last line is long ago or this is the `last` one."""
        if self._live is not None:
            self._live.update(self._drawn(done, total, text), refresh=True)
        elif self.out.is_jupyter:
            self._show_in_notebook(self._drawn(done, total, text))
        elif last or self._logged is None or time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            self.out.print(f"{escape(self.name)}: {escape(text)}")

    def _show_in_notebook(self, drawn: Table) -> None:
        # An output that is replaced: it needs no widgets, and a stored notebook shows it as it was last.
        from IPython.display import display

        if self._handle is None:
            self._handle = display(drawn, display_id=True)
        else:
            self._handle.update(drawn)

    def _drawn(self, done: float, total: float | None, text: str) -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(escape(self.name), ProgressBar(total or 1.0, done if total else 0.0, width=30), escape(text))
        return grid
