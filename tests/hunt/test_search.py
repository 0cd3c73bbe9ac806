"""Keeping, shrinking, continuing; and each fix that a switch takes out is where the switch looks for it."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from scripts.hunt import corpus, coverage, shrink
from scripts.hunt.__main__ import main
from scripts.hunt.cases import Case, Environment, Finding, Gene, Program
from scripts.hunt.corpus import Population, Totals
from scripts.hunt.coverage import edited
from scripts.hunt.environments import problem
from scripts.hunt.play import Played
from scripts.hunt.search import Hunt, Result, rounds
from scripts.hunt.switches import SWITCHES
from tests.hunt.switched import BY_HAND

ROOT = Path(__file__).parents[2]
CASE = Case(1, 2, Environment(peers=3, d=6), Program((Gene("Report", "omit"),)))


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_finds_its_place(name: str) -> None:
    switch = SWITCHES[name]
    for module in {edit.module for edit in switch.edits}:
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        changed = edited(source, module, switch.edits)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))


def test_a_switch_without_its_place_is_refused() -> None:
    with pytest.raises(ValueError, match="it has to be there once"):
        edited("x = 1\n", "btard.protocol.limits", SWITCHES["one_face"].edits)


def test_what_reaches_something_new_is_kept() -> None:
    population = Population()
    assert population.offer(CASE, ["1", "2"])
    assert not population.offer(CASE, ["2"])
    assert population.offer(CASE, ["2", "start>silent"])
    assert len(population.cases) == 2


def test_the_same_finding_is_reported_once() -> None:
    hunt = Hunt(Totals("commit"))
    line = corpus.line_of(CASE)
    found = corpus.line_of(Finding("agreement", "two states", 1, CASE))
    results = [Result(line, 2, ["1"], found, False, False) for _ in range(2)]
    assert [hunt.take(result) is not None for result in results] == [True, False]
    assert (hunt.totals.runs, hunt.totals.steps, len(hunt.findings)) == (2, 4, 1)


def test_the_search_follows_from_its_seed(tmp_path: Path) -> None:
    one, other = Hunt(Totals("commit")), Hunt(Totals("commit"))
    assert [one.candidate(3) for _ in range(5)] == [other.candidate(3) for _ in range(5)]
    assert one.candidate(3) != other.candidate(4)
    for _ in rounds(one, 3, 0.5, 1):
        pass
    assert one.totals.runs > 0
    assert not one.findings
    corpus.save(tmp_path, one.totals, one.population, one.findings)
    totals, cases = corpus.load(tmp_path, "commit")
    assert totals == one.totals
    assert cases == one.population.cases
    with pytest.raises(ValueError, match="use another folder"):
        corpus.load(tmp_path, "another commit")


def test_the_mode_liveness_asks_for_calm() -> None:
    hunt = Hunt(Totals("commit"), Population([CASE]), mode="liveness")
    cases = [hunt.candidate(5) for _ in range(60)]
    assert all(case.environment.calm is not None for case in cases)
    assert all(problem(case.environment, case.steps) is None for case in cases)
    usual = [Hunt(Totals("commit", next=number)).candidate(5) for number in range(200)]
    assert 5 < sum(case.environment.calm is not None for case in usual) < 100


def test_shrinking_keeps_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(case: Case) -> Played:
        guilty = any(gene.how == "nan" for gene in case.program.genes) and case.steps >= 2
        return Played(finding=Finding("finite", "NaN", 1, case) if guilty else None)

    monkeypatch.setattr(shrink, "play", fake)
    genes = tuple(Gene("hook gradient", how, start=1, to="half") for how in ("zero", "nan", "huge"))
    env = Environment(peers=7, members=(2, 3), byzantine=2, d=40, tau=3.0, loss=0.1, late=((1, 1),))
    small = shrink.shrink(Finding("finite", "NaN", 1, Case(1, 8, env, Program(genes))), seconds=20)
    assert small.case.steps == 2
    assert small.case.program.genes == (Gene("hook gradient", "nan"),)
    assert small.case.environment == Environment(peers=3, byzantine=0, members=(), d=6)
    assert replace(small, case=CASE).invariant == "finite"


def test_the_command_refuses_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    done = subprocess.run(
        [sys.executable, "-m", "scripts.hunt", "--replay", str(bad)], cwd=ROOT, capture_output=True, text=True
    )
    refused = [(done.returncode, done.stderr, "line 1: not a case")]
    monkeypatch.setattr(coverage, "install", lambda edits: None)  # too late for it in this process
    for words, said in (
        (["--continue", "--out", str(tmp_path / "none")], "nothing to continue"),
        (["--minutes", "0"], "must be positive"),
    ):
        refused.append((main(words), capsys.readouterr().err, said))
    for code, errors, said in refused:
        assert code == 2, errors
        assert said in errors
        assert errors.count("\n") == 1


@pytest.mark.parametrize("stored", [Path(__file__).parent / "switches.jsonl", None], ids=["cases", "by hand"])
def test_without_its_fix_something_breaks(stored: Path | None) -> None:
    """The invariants see the breaks; how long the search takes to come upon them is measured elsewhere."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.hunt.switched", *([str(stored)] if stored else [])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for switch, with_fix, without in map(json.loads, done.stdout.splitlines()):
        assert not with_fix, f"{switch}: {with_fix} breaks with all fixes in place"
        assert without, f"{switch}: nothing breaks without the fix"
        assert without != "the process failed", switch
    expected = len(stored.read_text().splitlines()) if stored else len(BY_HAND)
    assert done.stdout.count("\n") == expected >= 12


def test_what_a_search_imports_counts_as_what_is_hunted() -> None:
    loaded = "import sys, scripts.hunt.program, scripts.hunt.search, scripts.hunt.invariants; print(*sys.modules)"
    said = subprocess.run((sys.executable, "-c", loaded), cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "btard.audit.replay" in said.split()
    assert not {name for name in said.split() if name.startswith(tuple(f"btard.{one}" for one in corpus.UNHUNTED))}
