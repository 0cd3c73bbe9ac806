"""A finding made small: fewer genes, fewer mishaps, fewer peers and steps, as long as the same invariant breaks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from scripts.hunt.cases import FOREVER, Case, Environment, Finding, Twin
from scripts.hunt.environments import calmed, problem
from scripts.hunt.play import play


def shrink(finding: Finding, seconds: float = 60.0, report: Callable[[int], None] = lambda runs: None) -> Finding:
    """The smallest variant that was found in `seconds`; `finding` itself if there is none."""
    best, runs, until = finding, 0, time.monotonic() + seconds
    changed = True
    while changed and time.monotonic() < until:
        changed = False
        for case in smaller(best.case):
            if time.monotonic() >= until:
                break
            if problem(case.environment, case.steps) is not None:
                continue
            runs += 1
            report(runs)
            found = play(case).finding
            if found is not None and found.invariant == best.invariant:
                best, changed = found, True
                break
    return best


def smaller(case: Case) -> Iterator[Case]:
    """Variants, the boldest first."""
    env, program = case.environment, case.program
    for steps in sorted({1, case.steps // 2, case.steps - 2, case.steps - 1}):
        if 0 < steps < case.steps:
            yield replace(case, steps=steps)
    if len(program.genes) > 1:
        half = len(program.genes) // 2
        yield replace(case, program=replace(program, genes=program.genes[:half]))
        yield replace(case, program=replace(program, genes=program.genes[half:]))
    for i in range(len(program.genes)):
        yield replace(case, program=replace(program, genes=(*program.genes[:i], *program.genes[i + 1 :])))
    for i, twin in enumerate(program.twins):
        rest = (*program.twins[:i], *program.twins[i + 1 :])
        yield replace(case, program=replace(program, twins=rest))
        if twin != Twin(who=twin.who, start=twin.start):
            yield replace(case, program=replace(program, twins=(*rest, Twin(who=twin.who, start=twin.start))))
    for changed in _calmer(env):
        yield replace(case, environment=changed)
    for i, gene in enumerate(program.genes):
        plain = {"who": -1, "start": 0, "stop": FOREVER, "every": 1, "when": "always", "to": "all"}
        plain |= {"where": "all", "phase": ""}
        for name, value in {**plain, "size": 1.0, "pick": 0}.items():
            if getattr(gene, name) != value:
                simpler = replace(gene, **{name: value})
                genes = (*program.genes[:i], simpler, *program.genes[i + 1 :])
                yield replace(case, program=replace(program, genes=genes))


def _calmer(env: Environment) -> Iterator[Environment]:
    usual = Environment(peers=env.peers)
    for name in env.__struct_fields__:
        if name not in ("peers", "members", "byzantine", "d") and getattr(env, name) != getattr(usual, name):
            yield replace(env, **{name: getattr(usual, name)})
    for name in ("away", "late", "drops", "faint", "newcomers"):
        items = getattr(env, name)
        for i in range(len(items)) if len(items) > 1 else ():
            yield replace(env, **{name: (*items[:i], *items[i + 1 :])})
    if env.calm:
        yield calmed(env, 0)
    if env.probation is not None and not env.newcomers:
        yield replace(env, probation=None)
    for d in (env.peers + 3, 2 * env.peers + 1):
        if d < env.d:
            yield replace(env, d=d)
    for out in range(env.peers):
        yield _without(env, out, 1 if out in env.members else 0)
    if env.byzantine > len(env.members):
        yield replace(env, byzantine=env.byzantine - 1)


def _without(env: Environment, out: int, hostile: int) -> Environment:
    """The cohort with one peer fewer; those with higher numbers move up."""

    def moved(peer: int) -> int:
        return peer - (peer > out)

    return replace(
        env,
        peers=env.peers - 1,
        members=tuple(moved(peer) for peer in env.members if peer != out),
        byzantine=max(0, env.byzantine - hostile),
        away=tuple((moved(peer), step) for peer, step in env.away if peer != out),
        late=tuple((moved(peer), step) for peer, step in env.late if peer != out),
        drops=tuple((moved(peer), step, phase) for peer, step, phase in env.drops if peer != out),
        faint=tuple(replace(one, peer=moved(one.peer)) for one in env.faint if one.peer != out),
    )
