"""Runs the recorders of a commit's tree and of this tree on the same machine, and prints what differs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

from btard.harness.tables import show
from scripts.golden.differences import INSIDE, Difference, Key, Record, differences, key_of

ROOT = Path(__file__).resolve().parents[2]
SHOWN = 50
"""Number of differences that are printed."""


class GoldenError(Exception):
    """A comparison that cannot be made, in one line."""


def compare(commit: str, chosen: Sequence[str], jobs: int, keep: Path | None) -> int:
    """Print what is equal and what is not; 1 if anything is not.

    `chosen`: the recorder's options that say which runs; `keep`: file for both records.

    Errors: GoldenError if `commit` is unknown or older than the recorder, or a recorder fails.
    """
    old, new = both(commit, chosen, jobs)
    found = list(differences(old, new))
    if keep is not None:
        sides = {"old": old, "new": new}
        keep.write_text(json.dumps({side: [[*key, fields] for key, fields in r.items()] for side, r in sides.items()}))
    report(old, new, found)
    return 1 if found or failed(new) else 0


def columns() -> tuple[ProgressColumn, ...]:
    """The text of a progress bar: whose runs, how many of how many, and for how long."""
    return TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()


def both(commit: str, chosen: Sequence[str], jobs: int) -> tuple[Record, Record]:
    """The records of `commit` and of this tree, made side by side, with `jobs` processes in all."""
    words = [*chosen, "--jobs", str(max(1, jobs // 2))]
    running: list[subprocess.Popen[str]] = []
    with checked_out(commit) as tree, ended(running), Progress(*columns(), console=Console(stderr=True)) as progress:
        sides = {commit[:12]: tree, "this tree": ROOT}
        made: dict[str, Record | GoldenError] = {}

        def make(side: str, task: Any) -> None:
            try:
                made[side] = record_of(sides[side], words, lambda **changes: progress.update(task, **changes), running)
            except GoldenError as error:
                made[side] = GoldenError(f"{side}: {error}")

        threads = [threading.Thread(target=make, args=(s, progress.add_task(s, total=None))) for s in sides]
        for at_once in [threads] if jobs > 1 else [[thread] for thread in threads]:
            for thread in at_once:
                thread.start()
            for thread in at_once:
                thread.join()
    for result in made.values():
        if isinstance(result, GoldenError):
            raise result
    old, new = (made[side] for side in sides)
    assert not isinstance(old, GoldenError) and not isinstance(new, GoldenError)
    return old, new


@contextmanager
def ended(running: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Processes that still run when this is left, by Ctrl-C for example, end with it, and those that they started."""
    try:
        yield
    finally:
        for process in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A worktree of `commit` in a temporary folder. Errors: GoldenError if there is no such commit."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)

    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        added = git("worktree", "add", "--detach", str(tree), commit)
        if added.returncode:
            raise GoldenError(f"{commit}: git has no such commit here ({added.stderr.strip().splitlines()[-1]})")
        try:
            if not (tree / "scripts/golden").is_dir():
                raise GoldenError(f"{commit} is older than scripts/golden: name a commit that can record itself")
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def record_of(
    tree: Path, words: Sequence[str], progress: Callable[..., None], running: list[subprocess.Popen[str]]
) -> Record:
    """The record made by the recorder of `tree`, a process that is added to `running`.

    Errors: GoldenError with the end of what it said.
    """
    command = [sys.executable, "-m", "scripts.golden", "record", *words]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=said, text=True, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None
        running.append(process)
        made: dict[Key, dict[str, Any]] = {}
        for number, text in enumerate(process.stdout):
            if number == 0:
                progress(total=int(text))
                continue
            line = json.loads(text)
            made[key_of(line)] = line["fields"]
            progress(advance=1)
        if process.wait():
            said.seek(0)
            raise GoldenError("the recorder failed: " + " | ".join(said.read().strip().splitlines()[-3:]))
    return made


def failed(record: Record) -> list[Key]:
    """Runs that ended in an error: they should not, even if they do so on both sides."""
    return [key for key, fields in record.items() if "error" in fields]


def report(old: Record, new: Record, found: Sequence[Difference]) -> None:
    """A table of how much is equal, by section and field, and a line for each difference."""
    compared = Counter((key[0], _kind(field)) for key in old if key in new for field in {**old[key], **new[key]})
    unequal = Counter((difference.key[0], _kind(difference.field)) for difference in found)
    rows = []
    for section, field in dict.fromkeys((*compared, *unequal)):
        count = max(compared[section, field], unequal[section, field])
        different = unequal[section, field]
        rows.append([section, field, str(count), str(count - different), str(different) if different else "-"])
    show("golden record", ("section", "field", ">compared", ">equal", ">different"), rows)
    for difference in found[:SHOWN]:
        print(difference)
    if len(found) > SHOWN:
        print(f"and {len(found) - SHOWN} more: --keep FILE writes both records to a file")
    for key in failed(new):
        print(f"{' | '.join(map(str, key))} | failed here: {new[key]['error']}")
    print(f"{len(found)} differences (section | run | seed | field | old | new)" if found else "no difference")


def _kind(field: str) -> str:
    """The field's name without its place inside, the same for all peers, ranks and steps."""
    return re.sub(r"\d+", "N", field.partition(INSIDE)[0])
