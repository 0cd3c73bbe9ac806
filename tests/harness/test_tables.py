"""Tables: the same rows at a terminal, as Markdown and as CSV."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from btard.harness.tables import LOG_WIDTH, console, csv_text, markdown, show, table

COLUMNS = ("name", ">count")
ROWS = [["a|b [red]", "1"], ["c", "20"]]


def test_markdown_escapes_bars_and_says_where_columns_stand() -> None:
    assert markdown(COLUMNS, ROWS) == "| name | count |\n| --- | ---: |\n| a\\|b [red] | 1 |\n| c | 20 |"


def test_csv_quotes_what_needs_it() -> None:
    assert csv_text([["name", "count"], ["a,b", "1"]]) == 'name,count\n"a,b",1\n'


def test_a_printed_table_shows_words_as_they_are_and_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    show("runs/[x]", COLUMNS, ROWS)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "runs/[x]" in lines
    assert any("a|b [red]" in line and line.endswith(" 1│") for line in lines)
    assert any(line.endswith("20│") for line in lines)


def test_markup_only_where_it_is_asked_for() -> None:
    text = io.StringIO()
    Console(file=text, width=60).print(table("", ("what",), [["[green]ok[/]"]], markup=True))
    assert "ok" in text.getvalue() and "green" not in text.getvalue()


def test_a_log_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == LOG_WIDTH
