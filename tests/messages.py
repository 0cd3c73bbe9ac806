"""Messages that documents quote are those of the programs: in tables, in the first column, between backticks.

`...` stands for what differs from case to case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
GAP = 400
"""Characters of the source that one `...` may stand for."""


def sources(*places: str) -> list[str]:
    """The text of all programs in these files and folders, with the strings of several lines put together.

    Of words that an f-string chooses from, the first one is taken.
    """
    files: list[Path] = []
    for place in places:
        path = ROOT / place
        files += [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in (".py", ".sh"))
    texts = [re.sub(r'"\s*\n\s*f?"', "", file.read_text(encoding="utf-8")) for file in files]
    return [re.sub(r"\{'(\w+)' if [^{}]*\}", r"\1", text) for text in texts]


def quoted(text: str) -> Iterable[str]:
    """The messages that the tables of a document quote."""
    for row in re.findall(r"^\| (`.+?) \|", text, re.MULTILINE):
        yield from re.findall(r"`([^`]+)`", row.replace("\\|", "|"))


def unknown(messages: Iterable[str], said: Sequence[str]) -> list[str]:
    """Those of the messages that no source says, in one place and in this order."""
    lacking = []
    for message in messages:
        parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
        pattern = re.compile(f".{{0,{GAP}}}?".join(parts), re.DOTALL)
        if not parts or not any(pattern.search(text) for text in said):
            lacking.append(message)
    return lacking
