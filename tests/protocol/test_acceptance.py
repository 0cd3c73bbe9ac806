"""The acceptance matrix: every behaviour meets its fate, and no honest peer is ever banned for it.

Rows: an attack of the registry, how many of the peers run it, what their ledger entries must say, and when.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from btard.attacks import ATTACKS, make_attack
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.messages import Report
from tests.protocol.cohort import Run, run_cohort

START = 2


@dataclass(frozen=True)
class Row:
    attack: str
    kinds: set[str]
    """Ledger kinds that an attacker may be removed for."""
    same_step: bool = False
    """Gone in the step of the first deviation, not only once validated."""
    options: dict[str, Any] = field(default_factory=dict)
    attackers: int = 2
    peers: int = 7
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.attack, *map(str, self.options.values()), f"{self.attackers}of{self.peers}"])


VALIDATED = {"wrong_gradient"}
GRADIENT_ROWS = [
    Row("sign_flip", VALIDATED),
    Row("random_direction", VALIDATED),
    Row("label_flip", VALIDATED),
    Row("delayed_gradient", VALIDATED, options={"delay": 2}),
    Row("ipm", VALIDATED, options={"epsilon": 0.1}),
    Row("ipm", VALIDATED, options={"epsilon": 0.6}),
    Row("alie", VALIDATED),
    Row("noise", VALIDATED),
    Row("zero", VALIDATED),
    Row("copy", VALIDATED),
    Row("min_max", VALIDATED),
    Row("min_sum", VALIDATED),
    Row("rop", VALIDATED),
]
PROTOCOL_ROWS = [
    Row("wrong_aggregate", {"wrong_aggregate"}, same_step=True, options={"scale": 0.1}),
    Row("wrong_aggregate", {"wrong_aggregate"}, same_step=True, options={"scale": 1000.0}, attackers=3, peers=9),
    Row("wrong_aggregate", {"wrong_aggregate"}, same_step=True, attackers=1, settings={"tau": 0.01}),
    Row("colluding_aggregate", {"wrong_aggregate"}, same_step=True, options={"scale": 100.0}),
    Row("colluding_aggregate", {"wrong_aggregate", "wrong_gradient"}, options={"scale": 2.0}),
    Row("misreport", {"misreport"}, same_step=True, options={"what": "s"}),
    Row("misreport", {"misreport"}, same_step=True, options={"what": "norm"}, attackers=3, peers=9),
    Row("non_finite", {"bad_part"}, same_step=True, options={"value": "nan"}),
    # Its own part is Inf too, so its own list of senders lacks itself, which nobody accused it of.
    Row(
        "non_finite", {"bad_part", "unexplained_exclusion"}, same_step=True, options={"value": "inf", "entries": "all"}
    ),
    Row("bad_part", {"bad_part"}, same_step=True, options={"recipients": "all"}),
    Row("bad_part", {"bad_part"}, same_step=True, options={"recipients": "one", "send": "garbage"}),
    Row("bad_part", {"bad_part"}, same_step=True, options={"recipients": "one", "send": "short"}),
    Row("bad_aggregate", {"bad_aggregate"}, same_step=True, options={"recipients": "one"}),
    Row("bad_aggregate", {"bad_aggregate"}, same_step=True, options={"recipients": "all", "send": "nan"}),
    Row("silent", {"silent"}, same_step=True, options={"phase": "reveal"}),
    Row("silent", {"silent"}, same_step=True, options={"phase": "report"}),
    Row("silent", {"silent"}, same_step=True, options={"phase": "part"}),
    Row("silent", {"silent"}, same_step=True, options={"phase": "aggregate"}),
    Row("silent", {"gone"}, options={"phase": "commit"}),
    Row("wrong_reveal", {"wrong_reveal"}, same_step=True),
]


def attack_run(row: Row, seed: int, steps: int = 120) -> tuple[Run, frozenset[int]]:
    """The row's run until all attackers are gone; who attacks differs by seed, peer 0 never does."""
    members = frozenset(1 + (seed + 2 * i) % (row.peers - 1) for i in range(row.attackers))
    assert len(members) == row.attackers
    collusion = Collusion(members, row.peers, seed)
    attackers: dict[int, Behaviour] = {
        i: make_attack(row.attack, collusion, start=START, **row.options) for i in sorted(members)
    }
    settings = {"tau": 1.0, **row.settings}
    run = run_cohort(
        attackers, peers=row.peers, steps=steps, seed=seed, collusion=collusion, until_banned=members, **settings
    )
    return run, members


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("row", GRADIENT_ROWS + PROTOCOL_ROWS, ids=str)
def test_attackers_are_banned_and_nobody_else(row: Row, seed: int) -> None:
    run, members = attack_run(row, seed)
    assert set(run.removed) == members, f"seed {seed}: {run.entries}"
    assert {entry.kind for entry in run.removed.values()} <= row.kinds
    assert all(entry.step >= START for entry in run.entries)
    if row.same_step:
        # A validator of the first step does not work in it, so it deviates one step later (or two, by bad luck).
        first = min(entry.step for entry in run.entries)
        assert first == START or first == START + 1
        assert all(entry.about_step == entry.step for entry in run.removed.values())
    assert torch.isfinite(run.params).all()


def test_every_attack_of_the_registry_has_a_row_or_a_test_of_its_own() -> None:
    covered = {row.attack for row in GRADIENT_ROWS + PROTOCOL_ROWS}
    elsewhere = {"false_accusation", "never_accuse", "withheld_part", "withheld_aggregate"}
    assert covered | elsewhere == set(ATTACKS)


FALSE_KINDS = ["wrong_gradient", "misreport", "wrong_aggregate", "bad_part", "bad_aggregate"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("attackers", "peers"), [(1, 5), (7, 16)])
@pytest.mark.parametrize("kind", FALSE_KINDS)
def test_a_false_accusation_costs_the_accuser_its_place(kind: str, attackers: int, peers: int, seed: int) -> None:
    row = Row("false_accusation", {"false_accusation"}, options={"kind": kind}, attackers=attackers, peers=peers)
    run, members = attack_run(row, seed, steps=12)
    assert set(run.removed) == members
    assert {entry.kind for entry in run.removed.values()} <= {"false_accusation", "contradiction"}
    assert all(entry.accused not in entry.peers for entry in run.entries if entry.kind == "false_accusation")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("attack", ["withheld_part", "withheld_aggregate"])
def test_a_dispute_without_evidence_removes_both(attack: str, seed: int) -> None:
    run, members = attack_run(Row(attack, set(), options={"recipients": "one"}, peers=9), seed)
    assert members <= set(run.removed)
    honest = set(run.removed) - members
    assert len(honest) <= len(members), "no Byzantine peer takes more than one honest peer with it"
    for entry in run.entries:
        if honest & set(entry.peers):
            assert entry.verdict == "eliminated" and len(entry.peers) == 2 and members & set(entry.peers)


@pytest.mark.parametrize("attack", ["withheld_part", "withheld_aggregate"])
def test_who_withholds_from_all_goes_alone(attack: str) -> None:
    run, members = attack_run(Row(attack, set(), options={"recipients": "all"}, peers=9), seed=1)
    assert set(run.removed) == members
    assert {entry.kind for entry in run.entries} == {"silent"}


@pytest.mark.parametrize("kind", ["withheld_part", "withheld_aggregate"])
def test_a_false_dispute_takes_at_most_one_honest_peer_along(kind: str) -> None:
    row = Row("false_accusation", set(), options={"kind": kind, "together": False}, attackers=2, peers=9)
    run, members = attack_run(row, seed=2, steps=8)
    assert members <= set(run.removed)
    assert len(set(run.removed) - members) <= len(members)


class SelectiveOwner(Behaviour):
    """Sends its aggregate to fellow attackers only; they then pass it on to a single honest peer."""

    byzantine = True

    def __init__(self, fellows: frozenset[int], favoured: int) -> None:
        self.fellows, self.favoured = fellows, favoured

    def active(self, step: int) -> bool:
        return step >= START

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return value if recipient in self.fellows else None

    def forward(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return value if recipient == self.favoured or ctx.record.owner(part) not in self.fellows else None


@pytest.mark.parametrize("favoured", [0, 5])
def test_an_aggregate_given_to_some_honest_peers_cannot_split_them(favoured: int) -> None:
    fellows = frozenset({2, 3, 6})
    run = run_cohort({i: SelectiveOwner(fellows, favoured) for i in fellows}, peers=9, steps=8)  # would raise if split
    assert fellows <= set(run.removed)
    assert len(set(run.removed) - fellows) <= len(fellows)


class Reticent(Behaviour):
    """Says that it lacks the aggregates, to report nothing about them."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step >= START

    def report(self, ctx: Context, report: Report) -> Report:
        return replace(report, missing=tuple(sorted(ctx.record.announced)))


def test_nobody_gets_out_of_reporting_by_a_pretext() -> None:
    run = run_cohort({i: Reticent() for i in (2, 5)}, peers=7, steps=5)
    assert set(run.removed) == {2, 5}
    assert {entry.kind for entry in run.entries} == {"malformed_report"}
    assert run.entries[0].step == START


def test_claims_of_proven_liars_count_for_nothing() -> None:
    """Seven owners claim that one worker withheld parts which they themselves counted: a majority of who is left."""
    row = Row("false_accusation", set(), options={"kind": "withheld_part"}, attackers=7, peers=16)
    run, members = attack_run(row, seed=0, steps=6)
    assert set(run.removed) == members
    assert {entry.kind for entry in run.entries} == {"contradiction"}


def test_a_validator_that_never_accuses_does_no_harm() -> None:
    run, members = attack_run(Row("never_accuse", set(), peers=7), seed=0, steps=20)
    assert members and not run.entries


@pytest.mark.parametrize("peers", [1, 2, 3, 5, 16])
def test_honest_peers_agree_and_nobody_is_banned(peers: int) -> None:
    run = run_cohort(peers=peers, steps=8, d=50, validators=1 if peers >= 3 else 0)
    assert not run.entries and len(run.driver.peers) == peers
    assert float(run.params.norm()) < float(torch.ones(50).norm())


@pytest.mark.parametrize("tau", [0.01, 1.0, float("inf")])
@pytest.mark.parametrize("directions", [1, 3])
def test_honest_peers_survive_any_tau(tau: float, directions: int) -> None:
    run = run_cohort(peers=8, steps=6, tau=tau, directions=directions)
    assert not run.entries


def test_clipped_gradients_are_validated_like_others() -> None:
    collusion = Collusion(frozenset({2, 3}), 7)
    attackers = {i: make_attack("sign_flip", collusion, start=1) for i in (2, 3)}
    run = run_cohort(attackers, peers=7, steps=80, collusion=collusion, clip_lambda=0.5, until_banned=frozenset({2, 3}))
    assert set(run.removed) == {2, 3}
