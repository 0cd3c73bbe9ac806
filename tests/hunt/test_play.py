"""A case is repeatable to the bit, an honest one breaks nothing, and each kind of trouble is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from btard.protocol.commit import NoQuorum
from btard.protocol.heal import Choice, choose
from btard.protocol.ledger import Entry
from btard.protocol.peer import Peer
from btard.protocol.record import StepRecord
from scripts.hunt import invariants, play
from scripts.hunt.cases import Case, Environment, Gene, Life, Newcomer, Program, line_of, read
from scripts.hunt.invariants import Broken
from scripts.hunt.play import Played
from scripts.hunt.room import Room
from scripts.hunt.watch import Watch
from tests.audit.mutants import Truth

CORPUS = Path(__file__).parent / "corpus.jsonl"


def run(case: Case) -> Played:
    return play.play(case)


@pytest.mark.parametrize("line", CORPUS.read_text().splitlines(), ids=lambda line: str(read(line).case.seed))
def test_nothing_breaks_in_the_corpus(line: str) -> None:
    """Cases that broke something once, and those that reach most of the protocol."""
    found = run(read(line).case).finding
    assert found is None, f"{found.invariant}: {found.message}" if found else ""


def case(*genes: Gene, steps: int = 4, loyal: bool = True, **environment: Any) -> Case:
    env = Environment(**{"peers": 5, "members": (1,), "byzantine": 1, "d": 16, **environment})
    return Case(7, steps, env, Program(genes, loyal))


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"validation": "tolerant"},
        {"recorded": True},
        {"life": Life(1, 2)},
        {"probation": 1, "newcomers": (Newcomer(0), Newcomer(1))},
        {"away": ((0, 1), (2, 2))},
        {"late": ((0, 1),)},
        {"members": (), "loss": 0.1},
        {"beside": True, "commitments": "ideal"},
    ],
)
def test_without_genes_nobody_is_removed(environment: dict[str, Any]) -> None:
    played = run(case(**environment))
    assert played.finding is None, played.finding
    assert set(played.kinds) <= {"join", "member"}
    assert not played.crashes
    assert played.steps == (5 if "life" in environment else 4)


HURT = (
    Gene("hook gradient", "negative", size=100.0, start=2, stop=4),
    Gene("Claims", "omit", start=3, who=0),
)
"""The attackers pull the wrong way, and the first of them goes."""


@pytest.mark.parametrize(
    "lies",
    [
        (),
        (Gene("Measured", "omit"),),
        (Gene("Measured.bounds", "negative"),),
        (Gene("Measured.digests", "flip"),),
        (Gene("Measured.losses", "huge", who=1),),
        (Gene("Measured", "two_faces", to="half"),),
    ],
    ids=str,
)
def test_colluders_lie_about_states_and_everybody_heals_all_the_same(lies: tuple[Gene, ...]) -> None:
    healed = {"peers": 7, "members": (1, 2, 4), "byzantine": 3, "d": 60, "tau": 1000.0, "heal": 3}
    played = run(case(*HURT, *lies, steps=7, **healed))
    assert played.finding is None, played.finding
    assert "heal" in played.kinds and not played.crashes


@pytest.mark.parametrize(
    ("genes", "wrong", "message"),
    [(HURT[1:], 0, "goes back to step"), (HURT, -1, "goes on from step")],
    ids=["back without need", "on with the harm"],
)
def test_a_wrong_choice_of_a_state_is_a_finding(
    genes: tuple[Gene, ...], wrong: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(members: Any, steps: Any, said: Any) -> Choice:
        return choose(members, steps, said)._replace(step=steps[wrong])

    monkeypatch.setattr("btard.protocol.heal.choose", chosen)
    found = run(case(*genes, steps=7, peers=7, members=(1, 2, 4), byzantine=3, d=60, tau=1000.0, heal=3)).finding
    assert found is not None and found.invariant == "healing" and message in found.message


def test_a_case_is_repeatable_and_survives_its_line() -> None:
    wild = case(
        Gene("hook gradient", "huge", start=1, size=1e6), Gene("CoinReveal", "two_faces", start=2, to="half"), steps=5
    )
    first, again = run(wild), run(read(line_of(wild)).case)
    assert first.kinds
    assert (first.kinds, first.steps, first.crashes) == (again.kinds, again.steps, again.crashes)


@pytest.mark.parametrize(
    ("gene", "kind"),
    [
        (Gene("CoinReveal", "omit", start=1), "silent"),
        (Gene("CoinReveal.value", "flip", start=1), "wrong_reveal"),
        (Gene("Report", "garbage", start=1), "malformed_report"),
        (Gene("Report.norms", "scaled", start=1, size=2.0), "misreport"),
        (Gene("hook part", "scaled", start=1, size=2.0, where="honest"), "bad_part"),
        (Gene("hook aggregate", "huge", start=1, size=1e3), "wrong_aggregate"),
        (Gene("CoinCommit", "two_faces", start=1, to="one"), "equivocation"),
        (Gene("hook accuse", "wild", start=1), "malformed_claims"),
    ],
)
def test_genes_do_what_they_say(gene: Gene, kind: str) -> None:
    played = run(case(gene, steps=4))
    assert played.finding is None, played.finding
    assert kind in played.kinds


def test_what_a_colluder_says_may_follow_from_what_all_others_said() -> None:
    """Rushing: its products make the sum of V2 vanish, whatever its aggregate is."""
    huge, cooked = Gene("hook aggregate", "scaled", size=2.0, start=1), Gene("Report.products", "balance", start=1)
    alone, covered = (run(case(*genes, steps=2, tau=100.0)) for genes in ((huge,), (huge, cooked)))
    assert "wrong_aggregate" in alone.kinds
    assert covered.kinds != alone.kinds


def test_an_invariant_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    withheld = case(
        Gene("hook aggregate_for", "omit", start=1, to="rest"),
        Gene("hook forward", "omit", start=1),
        Gene("CoinReveal.missing", "empty", start=1),
        steps=3,
    )
    assert run(withheld).finding is None
    monkeypatch.setattr(invariants, "check_removal", _nobody_may_go)
    found = run(withheld).finding
    assert found is not None
    assert found.invariant == "nobody may go"
    assert found.step == 1


def _nobody_may_go(environment: Environment, entry: Entry, room: Room) -> None:
    raise Broken("nobody may go", entry.kind)


def test_an_error_in_an_honest_peer_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Peer, record: StepRecord, already: int) -> None:
        raise ZeroDivisionError("an honest peer failed")

    monkeypatch.setattr(Peer, "_finish", fails)
    found = run(case(members=(), byzantine=0)).finding
    assert found is not None
    assert found.invariant.startswith("ZeroDivisionError")


def test_honest_peers_may_not_be_removed_but_in_a_trade() -> None:
    env, room = Environment(peers=5, members=(1,), byzantine=1, drops=((3, 2, "report"),)), Room()
    room.members = {1}

    def entry(kind: str, verdict: str, peers: tuple[int, ...], step: int = 1) -> Entry:
        return Entry(step, kind, verdict, peers[0], (), peers, step)

    invariants.check_removal(env, entry("wrong_gradient", "guilty", (1,)), room)
    invariants.check_removal(env, entry("silent", "public", (3,), step=2), room)
    invariants.check_removal(env, entry("withheld_part", "eliminated", (0, 1)), room)
    for bad in (
        entry("withheld_part", "eliminated", (1, 2)),  # once more
        entry("withheld_part", "eliminated", (2, 4)),
        entry("wrong_gradient", "guilty", (0,)),
        entry("silent", "public", (3,), step=1),
    ):
        with pytest.raises(Broken):
            invariants.check_removal(env, bad, room)


def test_a_run_may_stop_only_if_too_few_honest_peers_are_there() -> None:
    made = case(Gene("Commit", "omit"), peers=4, away=((0, 1),))
    played = run(made)
    assert played.finding is None, played.finding
    assert played.stopped  # 2 of 4 are heard
    assert not run(replace(made, environment=replace(made.environment, away=()))).stopped
    assert not invariants.allowed_end(made.environment, NoQuorum("none"), {}, Room())


def test_where_honest_peers_and_links_are_well_every_step_comes_to_its_end() -> None:
    made = case(Gene("Commit", "omit"), peers=4, away=((0, 1),))
    late = replace(made, environment=replace(made.environment, calm=2))
    assert run(late).finding is None  # it stopped before
    promised = run(replace(made, environment=replace(made.environment, calm=1)))
    assert promised.finding is not None
    assert promised.finding.invariant == "NoQuorum"


def test_a_step_has_the_stated_number_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """One toss more for each that withholds its reveal, and no more."""
    made = case(Gene("CoinReveal", "omit", start=1), peers=7, members=(1, 2), byzantine=2)
    assert run(made).finding is None
    seen = []

    def one_toss_less(peers: int, tosses: int, rounds: int) -> int:
        seen.append((peers, tosses, rounds))
        return 10

    monkeypatch.setattr(invariants, "most_effects", one_toss_less)
    found = run(made).finding
    assert found is not None
    assert found.invariant == "rounds"
    assert seen == [(7, 3, 2)]


def test_honest_peers_send_and_read_no_more_than_deadlines_allow_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = case(Gene("hook relay", "replay", start=1), Gene("Report", "two_faces", start=1), recorded=True)
    assert run(made).finding is None
    with monkeypatch.context() as patched:
        patched.setattr("btard.protocol.loads.of_parts", lambda record, limit: 100)
        found = run(made).finding
    assert found is not None
    assert found.invariant == "load"
    assert "in part" in found.message
    monkeypatch.setattr("btard.protocol.loads.of_parts", lambda record, limit: 10**6)
    monkeypatch.setattr(Watch, "traffic", lambda self, there, letters, answers: self.due.update({2: 100}))
    found = run(made).finding
    assert found is not None
    assert found.message.startswith("peer 2 sent ")


def test_an_audit_that_has_other_entries_is_a_finding() -> None:
    one, other = (Entry(1, kind, "guilty", 1, (0,), (1,), 0) for kind in ("misreport", "wrong_gradient"))
    invariants.check_audit([one, other], [one, other])
    for found in ([one], [other, one], [one, other, one], []):
        with pytest.raises(Broken, match="the audit has"):
            invariants.check_audit([one, other], found)


def test_files_that_colluders_forge_are_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing untrue is believed; an audit that would believe it is found out."""
    made = case(Gene("Report.norms", "scaled", start=1, size=2.0), steps=4, recorded=True)
    monkeypatch.setattr(play, "MUTANTS", 12)
    played = run(made)
    assert played.finding is None, played.finding
    assert "misreport" in played.kinds
    monkeypatch.setattr(Truth, "allows", lambda self, report: False)
    found = run(made).finding
    assert found is not None
    assert found.invariant == "forged run"


def test_applied_parts_are_right_or_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without V2 and V3 whatever an owner likes is applied."""
    made = case(Gene("hook aggregate", "huge", start=1, size=1e6), steps=3)
    assert run(made).finding is None
    monkeypatch.setattr("btard.protocol.accuse.alarms", lambda *args, **kwargs: frozenset())
    found = run(made).finding
    assert found is not None
    assert found.invariant == "far-off part"
