"""The actions of the command: a search with a bar and a table at its end, or the replay of a file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from btard.harness import tables
from btard.harness.progress import Bar, duration
from scripts.hunt import corpus, coverage
from scripts.hunt.cases import Finding, line_of, read
from scripts.hunt.corpus import Population, Totals
from scripts.hunt.play import play
from scripts.hunt.search import Hunt, clock, prepare, replay, rounds, run_batch
from scripts.hunt.shrink import shrink

SHRINKING = 60.0
"""Seconds for reducing each finding."""


def replay_file(file: Path) -> int:
    """Run the cases of `file`; 1 if an invariant breaks in one of them."""
    prepare()
    broken = 0
    for number, line in enumerate(file.read_text().splitlines(), 1):
        try:
            wanted = read(line)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
        found = play(wanted.case).finding
        broken += found is not None
        if found is None:
            was = f" (it was: {wanted.invariant})" if wanted.invariant else ""
            print(f"line {number}: all invariants hold{was}")
        else:
            print(f"line {number}: BROKEN in step {found.step}: {found.invariant}: {found.message}")
    return 1 if broken else 0


CORPUS = 24
"""Cases that are kept for the tests."""


def distil(out: Path, file: Path) -> int:
    """Write to `file` up to `CORPUS` cases of the population in `out`: each adds the most features for its time."""
    prepare()
    lines = (out / corpus.POPULATION).read_text().splitlines()
    reached: dict[str, tuple[set[str], float]] = {}
    with Bar("running the population", len(lines), unit="cases") as bar:
        for line in lines:
            began = time.process_time()
            [result] = run_batch([line])
            if result.finding is None:
                reached[line] = set(result.features), time.process_time() - began
            bar.advance()
    chosen: list[str] = []
    known: set[str] = set()
    while reached and len(chosen) < CORPUS:
        best = max(reached, key=lambda line: len(reached[line][0] - known) / (0.2 + reached[line][1]))
        features, _ = reached.pop(best)
        if not features - known:
            break
        chosen.append(best)
        known |= features
    file.write_text("".join(f"{line}\n" for line in chosen))
    print(f"{file}: {len(chosen)} cases reach {len(known)} features")
    return 0


def search(args: argparse.Namespace) -> int:
    """Search as the command's `args` say; 1 if an invariant broke."""
    commit = corpus.commit_of_tree()
    hunt = Hunt(Totals(commit, jobs=args.jobs), Population(), mode=args.mode)
    seconds, before, began = 60 * args.minutes, 0.0, clock(args.jobs)
    if args.go_on:
        hunt.totals, cases = corpus.load(args.out, commit)
        kept = hunt.totals
        hunt.findings = [read(line) for line in (args.out / corpus.FINDINGS).read_text().splitlines()]
        before, numbers = kept.seconds, (kept.runs, kept.steps, kept.stopped, kept.crashes)
        prepare()
        with Bar("known cases", len(cases), unit="cases") as bar:
            replay(hunt, cases, lambda count: bar.move(count))
        kept.runs, kept.steps, kept.stopped, kept.crashes = numbers
        began = clock(args.jobs)
    new: list[Finding] = []
    with Bar("hunt", seconds, unit="") as bar:
        for found in rounds(hunt, args.seed, seconds, args.jobs):
            spent = clock(args.jobs) - began
            text = f"{hunt.totals.runs:,} runs, {len(hunt.population.features)} features, {len(hunt.findings)} findings"
            bar.move(min(spent, seconds), f"{text}, {duration(max(0.0, seconds - spent))} left")
            for finding in found:
                new.append(finding)
                bar.say(f"FOUND after {duration(spent)}: {finding.invariant}: {finding.message[:200]}")
                bar.say(f"  {line_of(finding)}")
            hunt.totals.seconds = before + spent
            corpus.save(args.out, hunt.totals, hunt.population, hunt.findings)
            if args.switch and found:
                break
    if args.switch and new:
        spent = clock(args.jobs) - began
        print(f"{args.switch}: found by {new[0].invariant!r} after {hunt.totals.runs} runs, {spent:.0f} s")
    small: dict[int, Finding] = {}
    for finding in new if not args.switch else ():
        with Bar(f"shrinking {finding.invariant}", unit="runs") as bar:
            small[id(finding)] = shrink(finding, SHRINKING, lambda runs: bar.move(runs))
        print(f"smallest: {line_of(small[id(finding)])}")
    hunt.findings = [small.get(id(finding), finding) for finding in hunt.findings]
    corpus.save(args.out, hunt.totals, hunt.population, hunt.findings)
    show(hunt, args.out)
    return 1 if new else 0


def show(hunt: Hunt, out: Path) -> None:
    """The table at the end."""
    totals, population = hunt.totals, hunt.population
    branches = len([name for name in population.features if name.isdigit()])
    machines = f"on {totals.jobs} processes" if totals.jobs > 1 else "of one CPU core"
    rows = [
        ("commit", totals.commit),
        ("time", f"{duration(totals.seconds)} {machines}"),
        ("runs", f"{totals.runs:,} ({totals.runs / max(1e-9, totals.seconds):.1f} per second), {totals.steps:,} steps"),
        ("branches reached", f"{branches} of {len(coverage.NAMES)}"),
        ("pairs of ledger entries", f"{len(population.features) - branches}"),
        ("last new feature", f"run {population.last_new:,}"),
        ("cases kept", f"{len(population.cases)}"),
        ("stopped for want of peers", f"{totals.stopped}"),
        ("colluders that failed by themselves", f"{totals.crashes} runs"),
        ("findings", f"{len(hunt.findings)}"),
    ]
    tables.show("hunt", ("what", "how much"), rows)
    print(f"files: {out / corpus.FINDINGS}, {corpus.POPULATION}, {corpus.STATE}")
