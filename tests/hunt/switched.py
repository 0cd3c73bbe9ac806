"""`python -m tests.hunt.switched [FILE]`: every case of FILE with all fixes, and without the one of its switch.

Without FILE it is the attacks of `by_hand`. Each runs in a process of its own, since a switch acts on what is
imported. Prints a line for each case: the switch, what breaks with the fix, and what breaks without it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch  # noqa: F401  # once, for all processes

from scripts.hunt import coverage
from scripts.hunt.blind import BLIND
from scripts.hunt.switches import KNOWN, SWITCHES

OF_KNOWN = (
    "two_bodies",
    "tiny_halves",
    "rounded_tolerance",
    "gone_together",
    "judges_without_truth",
    "cleared_by_the_gone",
    "revealed_at_once",
    "coin_without_faces",
    "reveals_not_again",
    "reports_not_again",
    "parts_once",
    "unheard_unsure",
    "told_by_the_unheard",
    "told_after_eliminations",
    "silence_lacks",
    "few_reports",
    "holders_gone",
    "held_by_few",
    "todays_bound",
    "the_silent_tell",
    "late_hands",
    "revealed_without_announcements",
    "revealed_without_aggregates",
    "listeners_guess",
    *(name for name in KNOWN if name.startswith("certificate")),
)
BY_HAND = (*BLIND, *OF_KNOWN)
"""The switches with an attack in `by_hand`, which imports the protocol."""


Play = Callable[[], str]
"""Says what breaks, and imports the protocol; "" if nothing does."""


def apart(play: Play) -> str:
    """What `play` says in a process of its own, forked from this one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "the process failed"
        try:
            said = play()
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said_by_child:
        said = said_by_child.read()
    os.waitpid(child, 0)
    return said


def without(switch: str, play: Play) -> str:
    """What breaks in `play` without the fix of `switch`."""
    coverage.install(SWITCHES[switch].edits, marked=False)
    return play()


def with_all(plays: list[Play]) -> str:
    """What breaks in each of `plays` with all fixes, as JSON: each in a process of its own, imported once for all."""
    import tests.hunt.by_hand  # noqa: F401

    return json.dumps([apart(play) for play in plays])


def stored(case: str) -> str:
    """The invariant that breaks in a `case` of the hunt."""
    from scripts.hunt.cases import read
    from scripts.hunt.play import play
    from scripts.hunt.search import prepare

    prepare()
    finding = play(read(case).case).finding
    return "" if finding is None else finding.invariant


def by_hand(name: str) -> str:
    """What the attack made for switch `name` breaks."""
    from tests.hunt.by_hand import PLAYS

    return PLAYS[name]()


def main() -> None:
    plays: list[tuple[str, Play]]
    if len(sys.argv) > 1:
        lines = map(json.loads, Path(sys.argv[1]).read_text().splitlines())
        plays = [(line["switch"], partial(stored, json.dumps(line["case"]))) for line in lines]
    else:
        plays = [(name, partial(by_hand, name)) for name in BY_HAND]
    fixed = json.loads(apart(partial(with_all, [play for _, play in plays])))
    for (switch, play), found in zip(plays, fixed, strict=True):
        print(json.dumps([switch, found, apart(partial(without, switch, play))]), flush=True)


if __name__ == "__main__":
    main()
