"""Tables of a section, for the terminal and for the page."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from btard.harness import tables


@dataclass(frozen=True)
class Table:
    """A title, what a reader must know about the numbers, and rows of words."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    @property
    def heading(self) -> list[str]:
        """Words in the first column, numbers in the others."""
        return [self.columns[0], *(f">{column}" for column in self.columns[1:])]

    def markdown(self) -> str:
        text = tables.markdown(self.heading, self.rows)
        return "\n\n".join(part for part in (f"### {self.title}", wrapped(self.note), text) if part)

    def show(self) -> None:
        tables.console().print(tables.table(self.title, self.heading, self.rows, note=self.note))


def wrapped(text: str) -> str:
    """`text` in lines that a page of the repository may have."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def of_kind(results: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The results of the cases whose names begin with this word, but for those that say only why they were skipped."""
    return [case for name, case in results.items() if name.startswith(f"{kind} ") and list(case) != ["skipped"]]


@dataclass(frozen=True)
class Aim:
    """A bound for `measured`: `at most` or, for speeds, `at least` this value."""

    what: str
    bound: float
    measured: float
    least: bool = False

    @property
    def kept(self) -> bool:
        return self.measured >= self.bound if self.least else self.measured <= self.bound


def aims_table(aims: Sequence[Aim]) -> Table:
    rows = [
        [
            aim.what,
            f"at {'least' if aim.least else 'most'} {aim.bound:g}",
            f"{aim.measured:.2f}",
            "yes" if aim.kept else "no",
        ]
        for aim in aims
    ]
    return Table("Aims", ["what", "aim", "measured", "kept"], rows, "Medians; of several cases the worst.")


def section(name: str, about: dict[str, Any], tables: Sequence[Table]) -> str:
    """Markdown of a section: its tables under what they were measured on."""
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    start, end = about["load"]
    quick = " Tiny sizes (`--quick`): these numbers only show that the code runs." if about["quick"] else ""
    facts = (
        f"{about['hardware']}, {about['threads']} threads, OMP_WAIT_POLICY "
        f"{about['OMP_WAIT_POLICY']}; load average {start} at the start, {end} at the end; {about['seconds']:.0f} s. "
        f"{versions}.{quick}"
    )
    command = f"`{about['command']}`"
    return "\n\n".join([f"## {name.capitalize()}", command, wrapped(facts), *(table.markdown() for table in tables)])


HEAD = """# Benchmark

Every number with a spread is `median (min to max)` over the repeats, a ratio to the unit that its table names. The unit
was measured in the same run, in turns with what is divided by it: compare ratios, not seconds of different runs."""


def page(aims: Sequence[Aim], sections: Sequence[str]) -> str:
    """The whole page."""
    kept = [aims_table(aims).markdown()] if aims else []
    return "\n\n".join([HEAD, *kept, *sections]) + "\n"
