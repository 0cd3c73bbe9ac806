"""WikiText's layout: what is an article, a paragraph and a sentence, and what only looks like a heading."""

import pytest

from albert.data.text import Layout, articles, detect_layout, heading_level, sentences


def read(text: str) -> list[list[str]]:
    return list(articles(text.split("\n")))


def test_articles_under_titles_paragraphs_between_blank_lines() -> None:
    text = " \n = One = \n \n A b .\n \n C d . \n \n = = Part = = \n \n E f . \n \n = Two = \n \n G h . \n"
    assert read(text) == [["A b .", "C d .", "E f ."], ["G h ."]]


def test_rows_of_the_hub_with_line_ends_give_the_same() -> None:
    rows = ["", " = One = \n", "", " A b . \n", " C d . \n", "", " = Two = \n", "", " E f . \n"]
    assert list(articles(rows)) == [["A b . C d ."], ["E f ."]]


def test_text_before_the_first_title_and_titles_without_text() -> None:
    assert read("Before .\n\n = One = \n\n = Two = \n\n = = Part = = \n\n = Three = \n\nText .") == [
        ["Before ."],
        ["Text ."],
    ]


@pytest.mark.parametrize("text", ["", "\n \n\t\n", " = Only = ", " = One = \n\n = Two = \n"])
def test_without_text_there_are_no_articles(text: str) -> None:
    assert read(text) == []


def test_the_legend_of_a_table_is_no_heading() -> None:
    # As WikiText has it: lines of one paragraph.
    assert read(" = Team = \n \n GP \n = Goals ; A = \n Assists \n") == [["GP = Goals ; A = Assists"]]


def test_a_heading_needs_blank_lines_on_both_sides() -> None:
    assert read("Text .\n = One = \n\nMore .") == [["Text . = One =", "More ."]]
    assert read("Text .\n\n = One = \nMore .") == [["Text .", "= One = More ."]]


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("= Title =", 1),
        ("= = Section = =", 2),
        ("= = = Part = = =", 3),
        ("= E = mc ² =", 1),
        ("= x", 0),
        ("= = x =", 0),
        ("x =", 0),
        ("=", 0),
        ("= =", 0),
        ("==", 0),
        ("", 0),
    ],
)
def test_levels_of_headings(line: str, level: int) -> None:
    assert heading_level(line) == level


def test_sentences_keep_all_text_in_order() -> None:
    text = 'It rained . " Why ? " he asked . Then 3 men came ! nothing , e.g. this , ended'
    cut = sentences(text)
    assert cut == ["It rained .", '" Why ? " he asked .', "Then 3 men came ! nothing , e.g. this , ended"]
    assert " ".join(cut) == text


def test_a_paragraph_without_ends_is_one_sentence_and_an_empty_one_none() -> None:
    assert sentences("a b c " * 1000) == [("a b c " * 1000).strip()]
    assert sentences("  ") == []


BERT = "One is here.\nTwo is there.\n\nThree goes on.\nFour too!\n"
WRAPPED = "It was a long day and\nnobody came. Then it\nrained.\n\nThe next day was as\nlong as that.\n"
CORPORA: dict[str, tuple[str, Layout, list[list[str]]]] = {
    "WikiText": (" = One = \n\nA b .\n\nC .\n\n = Two = \n\nD .\n", "headings", [["A b .", "C ."], ["D ."]]),
    "BERT's": (BERT, "blank-lines", [["One is here.", "Two is there."], ["Three goes on.", "Four too!"]]),
    "BERT's in Chinese": ("一。\n二。\n\n三。\n四。", "blank-lines", [["一。", "二。"], ["三。", "四。"]]),
    "a document per line": (
        "One. It ends.\nTwo. It does, too.\n",
        "lines",
        [["One. It ends."], ["Two. It does, too."]],
    ),
    "wrapped prose": (
        WRAPPED,
        "files",
        [["It was a long day and nobody came. Then it rained.", "The next day was as long as that."]],
    ),
    "nothing separates": ("One is here.\nTwo is there.\n", "files", [["One is here. Two is there."]]),
}


@pytest.mark.parametrize("corpus", CORPORA)
def test_what_separates_documents_is_found_out(corpus: str) -> None:
    text, layout, documents = CORPORA[corpus]
    lines = text.split("\n")
    assert detect_layout([lines]) == layout
    assert list(articles(lines, layout)) == documents


def test_a_title_in_any_file_makes_it_wikitext() -> None:
    assert detect_layout([BERT.split("\n"), ["", "= Title =", "", "Text ."]]) == "headings"
