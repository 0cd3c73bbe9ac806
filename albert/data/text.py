"""The layouts of a corpus: what separates its documents, their paragraphs and sentences."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, groupby, pairwise
from typing import Literal, get_args

Article = list[str]
"""Paragraphs, without blank lines and headings."""

Layout = Literal["headings", "blank-lines", "lines", "files"]
"""What begins a new document: a heading ` = Title = ` as in WikiText; a blank line, as in BERT's format, which has a
sentence per line; every line; or a new file alone."""
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

SHOWN = {
    "headings": "what stands under a heading = Title =",
    "blank-lines": "the lines up to a blank line",
    "lines": "a line",
    "files": "a whole file",
}
"""What a document is under each layout, for people."""
LEAST_SENTENCES = 2.0
"""Lines with this many sentences, on average, count as documents if nothing else separates any."""

_HEADING = re.compile(r"((?:= )+)\S.*?((?: =)+)")
# Abbreviations and initials end "sentences", too. What follows only needs units of text in their order.
_END = re.compile(r"[.!?。！？…]['\"”’)\]»]*$")
_BOUNDARY = re.compile(r"(?<=[.!?])\s+(?=[\"'“‘(\[]?\s*[^\Wa-z_])")


def articles(lines: Iterable[str], layout: Layout = "headings") -> Iterator[Article]:
    """Yield the documents in the `lines` of a file, each a list of at least one paragraph; one without text is none.

    Each run of spaces is one space. Lines that no blank line separates are one paragraph, except under "blank-lines",
    where each line is one. Under "headings" see `_under_headings`.
    """
    if layout == "headings":
        yield from _under_headings(lines)
        return
    bare = (" ".join(line.split()) for line in lines)
    if layout == "lines":
        yield from ([line] for line in bare if line)
        return
    blocks = (list(block) for filled, block in groupby(bare, bool) if filled)
    if layout == "blank-lines":
        yield from blocks
    elif whole := [" ".join(block) for block in blocks]:
        yield whole


def detect_layout(files: Iterable[Iterable[str]]) -> Layout:
    """Return the layout of a corpus, from the lines of its files.

    "headings" if there is a title; "blank-lines" if there are blank lines and the lines between them end as sentences
    do; "lines" if lines have several sentences; else "files": prose whose lines are broken anywhere, or without any
    separation.
    """
    ends = inner = parts = filled = gaps = 0
    for lines in files:
        before, last = "", ""
        bare = (" ".join(line.split()) for line in lines)
        for line, after in pairwise(chain(bare, [""])):
            if line and not before and not after and heading_level(line) == 1:
                return "headings"
            if line:
                filled += 1
                parts += len(sentences(line))
                gaps += bool(last) and not before
                last = line
                if after:
                    inner += 1
                    ends += bool(_END.search(line))
            before = line
    if gaps:
        return "blank-lines" if 2 * ends >= inner else "files"
    return "lines" if filled > 1 and parts >= LEAST_SENTENCES * filled else "files"


def _under_headings(lines: Iterable[str]) -> Iterator[Article]:
    """Yield the articles of a text like WikiText.

    ` = Title = ` begins an article and ` = = Section = = ` ends a paragraph. Neither is text of the article, and both
    count as headings only between blank lines, because a table's legend (`= Goals ; A =`) looks the same. What stands
    before the first title is an article of its own.
    """
    article: Article = []
    paragraph: list[str] = []
    before = ""
    for line, after in pairwise(chain((" ".join(line.split()) for line in lines), [""])):
        level = 0 if before or after else heading_level(line)
        before = line
        if line and not level:
            paragraph.append(line)
            continue
        if paragraph:
            article.append(" ".join(paragraph))
            paragraph = []
        if level == 1 and article:
            yield article
            article = []
    if paragraph:
        article.append(" ".join(paragraph))
    if article:
        yield article


def heading_level(line: str) -> int:
    """Return 1 for `= Title =`, 2 for `= = Section = =` and so on, and 0 for what has no form of a heading."""
    match = _HEADING.fullmatch(line)
    if match is None or len(match[1]) != len(match[2]):
        return 0
    return len(match[1]) // 2


def sentences(paragraph: str) -> list[str]:
    """Return the sentences of a paragraph: joined by spaces they are its text. An empty paragraph has none."""
    return [sentence for sentence in _BOUNDARY.split(paragraph.strip()) if sentence]
