"""Progress bars: drawn in place at a terminal and in a notebook, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
LOG_SECONDS = 30.0
"""Seconds between two lines in a log."""
DRAW_SECONDS = 0.2
"""Seconds between two drawings if somebody is looking."""


def duration(seconds: float) -> str:
    """Return a time for people: "40 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Bar:
    """The progress of something that takes long; a context manager.

    `name` says what it is, `unit` what is counted: "B" are bytes, "" only draws the share that is done. `done` of
    `total` are done already; a total of None is not known. Without `show` nothing is drawn, and with `patience` only
    what takes longer than so many seconds. In a log there is a line every `every` seconds. `out` is by default stderr.
    """

    def __init__(
        self,
        name: str,
        total: float | None = None,
        *,
        unit: str = "steps",
        done: float = 0,
        show: bool = True,
        patience: float = 0.0,
        every: float | None = None,
        out: Console | None = None,
    ) -> None:
        self.name, self.total, self.unit, self.first, self.done = name, total, unit, done, done
        self.text = ""
        self.out = Console(stderr=True) if out is None else out
        self._show, self._patience = show, patience
        self._began = time.monotonic()
        self._next = self._began + patience
        self._handle: Any = None
        self._drawn: tuple[float, float | None, str] | None = None
        in_place = self.out.is_jupyter or (self.out.is_terminal and not self.out.is_dumb_terminal)
        self._every = DRAW_SECONDS if in_place else LOG_SECONDS if every is None else every
        self._progress = self._columns() if show and in_place else None

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn is not None and self._drawn != (self.done, self.total, self.text):
            self._draw()
        if self._progress is not None:
            self._progress.stop()

    def advance(self, count: float = 1, text: str | None = None) -> None:
        """`count` more are done; `text` says more about the state."""
        self.move(self.done + count, text)

    def move(self, done: float, text: str | None = None, *, total: float | None = None) -> None:
        """Set how many are `done` now, and `total` if it has changed; `text` says more about the state."""
        self.done = done
        self.total = self.total if total is None else total
        self.text = self.text if text is None else text
        if self._show and time.monotonic() >= self._next:
            self._draw()

    def say(self, line: str) -> None:
        """Print a line for people above the bar, even if the bar is not shown."""
        if self._progress is not None and self._drawn is not None and not self.out.is_jupyter:
            self.out.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, flush=True)

    def _draw(self) -> None:
        self._next = time.monotonic() + self._every
        if self._progress is None:
            self.out.print(f"{escape(self.name)}: {escape(self._line())}", highlight=False, soft_wrap=True)
        else:
            task = self._progress.task_ids[0]
            self._progress.update(task, completed=self.done, total=self.total, text=self.text)
            self._show_in_place(self._progress)
        self._drawn = self.done, self.total, self.text

    def _show_in_place(self, progress: Progress) -> None:
        if not self.out.is_jupyter:
            if self._drawn is None:
                progress.start()
            return progress.refresh()
        # An output that is replaced: it needs no widgets, and a stored notebook shows it as it was last.
        from IPython.display import display

        if self._handle is None:
            self._handle = display(progress, display_id=True)
        else:
            self._handle.update(progress)

    def _columns(self) -> Progress:
        amount: dict[str, list[ProgressColumn]] = {"": [], "B": [DownloadColumn(), TimeRemainingColumn()]}
        counted: list[ProgressColumn] = [MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
        text = TextColumn("{task.fields[text]}", markup=False)
        columns = [TextColumn("{task.description}", markup=False), BarColumn(30), *amount.get(self.unit, counted), text]
        progress = Progress(*columns, console=self.out, transient=self._patience > 0, refresh_per_second=4)
        progress.add_task(self.name, total=self.total, text="")
        return progress

    def _line(self) -> str:
        def shown(count: float) -> str:
            return decimal(int(count)) if self.unit == "B" else f"{count:,.0f}"

        parts = [self.text] if self.text else []
        if self.unit:
            whole = "" if self.total is None else f" of {shown(self.total)}"
            unit = "" if self.unit == "B" else f" {self.unit}"
            made, spent = self.done - self.first, time.monotonic() - self._began
            left = 0.0 if self.total is None or made <= 0 else (self.total - self.done) * spent / made
            parts = [f"{shown(self.done)}{whole}{unit}", *([f"{duration(left)} left"] if left > 0 else []), *parts]
        return ", ".join(parts)


def track(
    items: Iterable[T], name: str, *, total: float | None = None, unit: str, show: bool = True, patience: float = 0.0
) -> Iterator[T]:
    """Yield `items`, and show how many of `total` have been passed; by default `total` is their number."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Bar(name, total, unit=unit, show=show, patience=patience) as bar:
        for item in items:
            yield item
            bar.advance()
