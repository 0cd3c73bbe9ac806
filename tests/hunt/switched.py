"""`python -m tests.hunt.switched FILE`: every case of FILE with all fixes, and without the one of its switch.

Each runs in a process of its own, since a switch acts on what is imported. Prints a line for each case: the switch,
what breaks with the fix, and what breaks without it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch  # noqa: F401  # once, for all processes

from scripts.hunt import coverage
from scripts.hunt.switches import SWITCHES


def broken(case: str, switch: str | None) -> str:
    """The invariant that breaks in the case; "" if none does."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "the process failed"
        try:
            coverage.install(SWITCHES[switch].edits if switch is not None else ())
            from scripts.hunt.cases import read
            from scripts.hunt.play import play
            from scripts.hunt.search import prepare

            prepare()
            finding = play(read(case).case).finding
            said = "" if finding is None else finding.invariant
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said_by_child:
        said = said_by_child.read()
    os.waitpid(child, 0)
    return said


def main() -> None:
    for line in Path(sys.argv[1]).read_text().splitlines():
        stored = json.loads(line)
        case = json.dumps(stored["case"])
        print(json.dumps([stored["switch"], broken(case, None), broken(case, stored["switch"])]), flush=True)


if __name__ == "__main__":
    main()
