"""The search: cases are drawn, changed, run on several processes, and kept if they reach something new.

What is new: a branch of `btard.protocol` (`coverage.py`), or two kinds of ledger entries one after the other.
"""

from __future__ import annotations

import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from msgspec.structs import replace

from btard.protocol.hashing import stream
from scripts.hunt import environments, grammar
from scripts.hunt.cases import Case, Finding, line_of, read
from scripts.hunt.corpus import Population, Totals
from scripts.hunt.play import Played, play

MODES = ("safety", "liveness")
"""What the environments must satisfy: nothing, so that some are calm in the end, or that all are calm."""
BATCH = 12
"""Number of cases that are handed to a process at once."""
FRESH = 0.35
"""The share of new random cases once there is a population."""


@dataclass
class Result:
    """The outcome of one case, as passed between processes."""

    line: str
    steps: int
    features: list[str]
    finding: str | None
    stopped: bool
    crashed: bool


@dataclass
class Hunt:
    """A search in progress."""

    totals: Totals
    population: Population = field(default_factory=Population)
    findings: list[Finding] = field(default_factory=list)
    mode: str = MODES[0]

    def candidate(self, seed: int) -> Case:
        """The next case, by its own stream."""
        number = self.totals.next
        self.totals.next += 1
        rng = stream("hunt", seed, number)
        named = int(rng.integers(2**31))
        cases = self.population.cases
        if not cases or rng.random() < FRESH:
            steps = environments.draw_steps(rng)
            case = Case(named, steps, environments.draw(rng, steps), grammar.program(rng, steps))
        else:
            case = changed(rng, cases, named)
        if self.mode == "liveness" and case.environment.calm is None:
            step = int(rng.integers(0, case.steps))
            case = replace(case, environment=environments.calmed(case.environment, step))
        return fitted(rng, case)

    def take(self, result: Result) -> Finding | None:
        """Count it, keep it if it is new; the finding, if there is one of a kind that was not found yet."""
        self.totals.runs += 1
        self.totals.steps += result.steps
        self.totals.stopped += result.stopped
        self.totals.crashes += result.crashed
        case = read(result.line).case
        if self.population.offer(case, result.features):
            self.population.last_new = self.totals.runs
        if result.finding is None:
            return None
        finding = read(result.finding)
        known = {(old.invariant, old.message.partition(":")[0]) for old in self.findings}
        if (finding.invariant, finding.message.partition(":")[0]) in known:
            return None
        self.findings.append(finding)
        return finding


def cost(case: Case) -> int:
    """A relative estimate of how long a run takes."""
    return case.steps * (case.environment.peers + 3) ** 2


def fitted(rng: np.random.Generator, case: Case) -> Case:
    if case.environment.life is None:
        return case
    return replace(case, program=grammar.for_lives(case.program, rng))


def changed(rng: np.random.Generator, cases: Sequence[Case], seed: int) -> Case:
    """A neighbour of one of `cases`, newer and cheaper ones more often: long runs would take most of the time."""
    parent = min((cases[int(len(cases) * rng.random() ** 0.5)] for _ in range(2)), key=cost)
    program, environment, steps = parent.program, parent.environment, parent.steps
    kind = rng.random()
    if kind < 0.25:
        other = cases[int(rng.integers(len(cases)))]
        program = grammar.crossed(program, other.program, rng)
    if kind < 0.85:
        program = grammar.mutated(program, rng, steps)
    if kind > 0.6:
        environment = environments.mutated(environment, rng, steps)
    if rng.random() < 0.2:
        steps = environments.draw_steps(rng)
        if environments.problem(environment, steps) is not None:
            steps = parent.steps
    return Case(seed, steps, environment, program)


def features_of(played: Played) -> list[str]:
    """What a run reached."""
    kinds = ("start", *played.kinds, "end")
    pairs = [f"{one}>{other}" for one, other in pairwise(kinds)]
    return [*(str(branch) for branch in sorted(played.branches)), *sorted(set(pairs))]


def prepare() -> None:
    """Set up a process before its first case."""
    torch.set_num_threads(1)
    np.seterr(all="ignore")
    warnings.simplefilter("ignore")


def run_batch(lines: Sequence[str]) -> list[Result]:
    results = []
    for line in lines:
        played = play(read(line).case)
        finding = None if played.finding is None else line_of(played.finding)
        results.append(Result(line, played.steps, features_of(played), finding, played.stopped, bool(played.crashes)))
    return results


def clock(jobs: int) -> float:
    """Seconds: of the CPU for a single process, which finds as much on a busy machine, else of the wall."""
    return time.process_time() if jobs == 1 else time.monotonic()


def rounds(hunt: Hunt, seed: int, seconds: float, jobs: int) -> Iterator[list[Finding]]:
    """Search for `seconds` on `jobs` processes; yields the new findings after every batch. Leaves no process behind."""
    until = clock(jobs) + seconds
    if jobs == 1:
        prepare()
        while clock(jobs) < until:
            lines = [line_of(hunt.candidate(seed)) for _ in range(BATCH // 3)]
            yield taken(hunt, run_batch(lines))
        return
    context = multiprocessing.get_context("fork")  # the modules with their marks go along
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=prepare)
    try:
        running: set[Future[list[Result]]] = set()
        while clock(jobs) < until:
            while len(running) < 2 * jobs:
                lines = [line_of(hunt.candidate(seed)) for _ in range(BATCH)]
                running.add(pool.submit(run_batch, lines))
            done, running = wait(running, timeout=5, return_when=FIRST_COMPLETED)
            for future in done:
                yield taken(hunt, future.result())
    finally:
        pool.shutdown(cancel_futures=True)


def taken(hunt: Hunt, results: Sequence[Result]) -> list[Finding]:
    return [found for result in results if (found := hunt.take(result)) is not None]


def replay(hunt: Hunt, cases: Sequence[Case], report: Callable[[int], None] = lambda count: None) -> list[Finding]:
    """Run `cases` again in this process, to fill the population."""
    found = []
    for count, case in enumerate(cases):
        found += taken(hunt, run_batch([line_of(case)]))
        report(count + 1)
    return found
