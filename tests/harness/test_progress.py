"""Bars: lines in a log, drawn in place at a terminal; cheap where nothing is drawn."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from btard.harness import progress
from btard.harness.progress import Bar, duration, track


class Clock:
    """Time passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def log() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=40), text


def test_a_log_gets_a_line_now_and_then_and_no_control_codes(clock: Clock) -> None:
    out, text = log()
    with Bar("runs/[a]", 100, done=10, out=out) as bar:
        for step in range(60):
            clock.now += 1
            bar.advance(text=f"loss {step}, a text that is longer than a line of the log")
    lines = text.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "runs/[a]: 11 of 100 steps",
        "runs/[a]: 41 of 100 steps",
        "runs/[a]: 70 of 100 steps",  # the last state, when it ends
    ]
    assert "59 s left, loss 30, a text that is longer" in lines[1] and "\x1b" not in text.getvalue()


def test_bytes_and_shares_and_what_has_no_known_end(clock: Clock) -> None:
    out, text = log()
    for bar in (
        Bar("a", 3_000_000, unit="B", out=out),
        Bar("b", 5, unit="", out=out),
        Bar("c", unit="lines", out=out),
    ):
        with bar:
            bar.move(2000, "so far", total=None)
    assert text.getvalue().splitlines() == ["a: 2.0 kB of 3.0 MB, so far", "b: so far", "c: 2,000 lines, so far"]


def test_nothing_is_drawn_of_what_is_quick_or_not_to_be_shown(clock: Clock) -> None:
    out, text = log()
    with Bar("quick", 3, out=out, patience=2.0) as quick, Bar("hidden", 3, out=out, show=False) as hidden:
        quick.advance(3)
        hidden.advance(3)
        clock.now += 5
        hidden.advance()
    assert text.getvalue() == ""


def test_at_a_terminal_one_line_is_drawn_over_and_others_stand_above_it(clock: Clock) -> None:
    text = io.StringIO()
    out = Console(file=text, force_terminal=True, width=100, _environ={})
    with Bar("run", 10, out=out) as bar:
        bar.advance(text="first")
        bar.say("peer 3 is [banned]")
        clock.now += 1
        bar.advance(text="second")
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.getvalue())
    assert "peer 3 is [banned]\n" in plain and "2/10" in plain and "second" in plain
    assert "\x1b[2K" in text.getvalue()


def test_lines_for_people_come_where_there_is_no_bar_too(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar("run", 10, show=False) as bar:
        bar.say("peer 3 is [banned]")
    assert capsys.readouterr().out == "peer 3 is [banned]\n"


def test_tracked_items_are_what_they_were(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", "letters", unit="letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("letters: 3 of 3 letters")
    assert list(track(iter("abc"), "letters", unit="letters", show=False)) == ["a", "b", "c"]


def test_times_for_people() -> None:
    assert [duration(seconds) for seconds in (40, 720, 12_000)] == ["40 s", "12 min", "3 h 20 min"]
