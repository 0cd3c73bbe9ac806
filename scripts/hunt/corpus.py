"""The cases that reached something new, and the time spent on them: kept over several runs on one commit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from btard.files import write_file
from scripts.hunt.cases import Case, Finding, line_of, read

ROOT = Path(__file__).parents[2]
POPULATION, FINDINGS, STATE = "population.jsonl", "findings.jsonl", "state.json"


@dataclass
class Totals:
    """What was run so far on one commit."""

    commit: str
    runs: int = 0
    steps: int = 0
    seconds: float = 0.0
    """Of wall time."""
    jobs: int = 1
    next: int = 0
    """The number of the next case: it names its random stream."""
    stopped: int = 0
    """Runs that ended early because too few peers were there, as documented."""
    crashes: int = 0
    """Runs in which a Byzantine peer's own code failed."""


@dataclass
class Population:
    """Cases and the features that each was the first to reach."""

    cases: list[Case] = field(default_factory=list)
    features: set[str] = field(default_factory=set)
    last_new: int = 0
    """The run in which the newest feature turned up."""

    def offer(self, case: Case, features: Iterable[str]) -> bool:
        """Keep the case if it reaches something new."""
        fresh = set(features) - self.features
        self.features |= fresh
        if fresh:
            self.cases.append(case)
        return bool(fresh)


UNHUNTED = "export", "swarm", "training", "watch"
"""The packages of `btard` that no search imports."""


def commit_of_tree() -> str:
    """The last commit that changed what is hunted or the hunt, with + behind it if the tree differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    code = "btard", "scripts/hunt", *(f":!btard/{package}" for package in UNHUNTED)
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return (git("log", "-1", "--format=%h", "--abbrev=12", "--", *code) or "unknown") + ("+" if changed else "")


def save(folder: Path, totals: Totals, population: Population, findings: Iterable[Finding]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / POPULATION, (line_of(case) for case in population.cases))
    _write(folder / FINDINGS, (line_of(finding) for finding in findings))
    state = {**vars(totals), "features": len(population.features), "last_new": population.last_new}
    _write(folder / STATE, [json.dumps(state, indent=2)])


def load(folder: Path, commit: str) -> tuple[Totals, list[Case]]:
    """What an earlier run left. Errors: ValueError if there is none, or it is of another commit."""
    if not (folder / STATE).exists():
        raise ValueError(f"{folder}: nothing to continue; leave out --continue, or name the folder with --out")
    state = json.loads((folder / STATE).read_text())
    if state["commit"] != commit:
        raise ValueError(
            f"{folder}: of commit {state['commit']}, the tree is at {commit}: use another folder with --out"
        )
    totals = Totals(**{name: state[name] for name in vars(Totals(commit))})
    return totals, [read(line).case for line in (folder / POPULATION).read_text().splitlines()]


def _write(file: Path, lines: Iterable[str]) -> None:
    """All of it or nothing: an interrupted run leaves the file unchanged."""
    write_file(file, "".join(f"{line}\n" for line in lines))
