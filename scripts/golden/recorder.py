"""Makes the runs of this tree and writes a JSON line for each to standard output, as they end."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence

from scripts.golden.differences import Line
from scripts.golden.runs import Case, cases, record

_work: list[Case] = []


def lines(work: Sequence[Case], jobs: int) -> Iterator[Line]:
    """The record of every case of `work`, in `jobs` processes, in any order."""
    _work[:] = work
    if jobs == 1:
        yield from map(_line, range(len(work)))
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:  # what is imported here need not be imported again
        yield from pool.imap_unordered(_line, range(len(work)))


def _line(index: int) -> Line:
    case = _work[index]
    return {"section": case.section, "name": case.name, "seed": case.seed, "fields": record(case)}


def work_of(sections: Sequence[str], seeds: int, match: str) -> list[Case]:
    """The runs of `sections` whose name holds `match`."""
    return [case for case in cases(sections, seeds) if match in case.name]


def write_lines(sections: Sequence[str], seeds: int, match: str, jobs: int) -> None:
    """First the number of runs, then a line for each. All other output goes to standard error."""
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        work = work_of(sections, seeds, match)
        print(len(work), file=out, flush=True)
        for line in lines(work, jobs):
            print(json.dumps(line), file=out, flush=True)
