"""The layout of WikiText: articles under headings, paragraphs between blank lines, sentences within them."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise

Article = list[str]
"""Paragraphs, without blank lines and headings."""

_HEADING = re.compile(r"((?:= )+)\S.*?((?: =)+)")
# Abbreviations and initials end "sentences", too. What follows only needs units of text in their order.
_BOUNDARY = re.compile(r"(?<=[.!?])\s+(?=[\"'“‘(\[]?\s*[^\Wa-z_])")


def articles(lines: Iterable[str]) -> Iterator[Article]:
    """Yield the articles in `lines`, each a list of at least one paragraph.

    ` = Title = ` begins an article and ` = = Section = = ` ends a paragraph. Neither is text of the article, and both
    count as headings only between blank lines, because a table's legend (`= Goals ; A =`) looks the same. What stands
    before the first title is an article of its own; one without text is none. Lines that no blank line separates are
    one paragraph; each run of spaces is one space.
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
