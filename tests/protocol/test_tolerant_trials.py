"""Trials in tolerant validation: what is hidden, forged or near the tolerance, and accusations that are false."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Context
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute, Purpose
from btard.protocol.ledger import Entry
from btard.protocol.messages import EXCUSED, FALSE_CLAIM, GUILTY, Claim, Report
from btard.protocol.signed import Packet
from btard.task import QuadraticTask
from tests.protocol.cohort import Run
from tests.protocol.tolerant import (
    TOL,
    TRIAL,
    Byzantine,
    OwnNumerics,
    at_distance,
    backwards,
    claim_about_target,
    from_everybody,
    from_half_of_the_judges,
    from_validators,
    run_mixed,
)


@pytest.mark.parametrize("withhold", [from_validators, from_everybody, from_half_of_the_judges])
def test_a_wrong_gradient_cannot_hide_by_not_being_shown(withhold: Any) -> None:
    for seed in range(6):
        run = run_mixed({3: Byzantine(backwards, withhold)}, seed=seed, steps=80, until_banned=frozenset({3}))
        shown = withhold is from_validators
        expected = {("undisclosed", GUILTY)} if shown else {("undisclosed", GUILTY), ("undelivered", "undelivered")}
        assert set(run.removed) == {3}, f"seed {seed}"
        assert (run.removed[3].kind, run.removed[3].verdict) in expected, f"seed {seed}"


@pytest.mark.parametrize(("withhold", "banned"), [(from_validators, set()), (from_everybody, {3})])
def test_who_withholds_a_right_gradient_stays_only_if_it_shows_it_in_the_trial(withhold: Any, banned: set[int]) -> None:
    for seed in range(4):
        run = run_mixed({3: Byzantine(packets=withhold)}, seed=seed, steps=20)
        assert set(run.removed) == banned, f"seed {seed}: {run.entries}"


def test_colluding_owners_cannot_make_an_honest_validator_pay_for_what_it_was_not_shown() -> None:
    """Two colluders show nothing to validators; in trials one shows to all but the validator, and neither helps."""
    members = frozenset({1, 4})
    for seed in range(6):
        attackers = {i: Byzantine(backwards, from_half_of_the_judges) for i in members}
        run = run_mixed(attackers, seed=seed, steps=100, until_banned=members)
        assert set(run.removed) == members, f"seed {seed}: {run.entries}"


JUNK: dict[str, Callable[[torch.Tensor], torch.Tensor | bytes]] = {
    "nan": lambda x: torch.full_like(x, torch.nan),
    "short": lambda x: x[:-1],
    "double": lambda x: x.double(),
    "garbage": lambda x: b"\0" * 100,
    "other": lambda x: x + 1,
    "oversize": lambda x: x.new_zeros(100 * len(x)),
}


@pytest.mark.parametrize("junk", JUNK)
def test_junk_shown_in_place_of_the_committed_parts_counts_as_nothing(junk: str) -> None:
    def send(phase: str, recipient: int, packets: Sequence[Packet]) -> Sequence[Packet]:
        if phase != "disclose" and not phase.startswith(TRIAL):
            return packets
        return [Packet(p.kind, p.sender, p.step, p.part, JUNK[junk](p.body), p.signature) for p in packets]

    run = run_mixed({3: Byzantine(backwards, send)}, seed=1, steps=60, until_banned=frozenset({3}))
    assert {p: e.kind for p, e in run.removed.items()} == {3: "undelivered"}


def test_a_false_accusation_costs_a_validator_its_place() -> None:
    for seed in range(6):
        accuser = Byzantine(claims=claim_about_target("wrong_gradient"))
        run = run_mixed({3: accuser}, seed=seed, steps=60, until_banned=frozenset({3}))
        assert {p: e.kind for p, e in run.removed.items()} == {3: "false_accusation"}, f"seed {seed}"


def test_a_false_accusation_by_anybody_else_costs_its_place_and_is_not_tried() -> None:
    def accuse(ctx: Context, honest: tuple[Claim, ...]) -> tuple[Claim, ...]:
        mine = ctx.record.assignments.get(ctx.peer) == 0
        return (Claim(ctx.step - 1, 0, "wrong_gradient"),) if ctx.last and 0 in ctx.last.workers and not mine else ()

    def forge(phase: str, recipient: int, packets: Sequence[Packet]) -> Sequence[Packet]:
        return [Packet("part", 0, 0, part, torch.ones(9), b"") for part in range(6)] if "evidence" in phase else packets

    members = frozenset({2, 4, 5})
    run = run_mixed({i: Byzantine(claims=accuse, packets=forge) for i in members}, peers=9, steps=4)
    assert set(run.removed) == members and {e.kind for e in run.entries} == {"malformed_claims"}


def test_a_validator_that_says_it_was_not_shown_anything_bans_nobody() -> None:
    for seed in range(4):
        run = run_mixed({i: Byzantine(claims=claim_about_target("undisclosed")) for i in (1, 2)}, seed=seed, steps=12)
        assert not run.entries, f"seed {seed}"


def test_only_its_validator_can_say_that_a_target_showed_nothing() -> None:
    def claims(ctx: Context, honest: tuple[Claim, ...]) -> tuple[Claim, ...]:
        targets = ctx.record.assignments
        return tuple(Claim(ctx.step - 1, i, "undisclosed") for v, i in targets.items() if ctx.peer not in (v, i))

    run = run_mixed({3: Byzantine(claims=claims)}, steps=5)
    assert {p: e.kind for p, e in run.removed.items()} == {3: "malformed_claims"}


@pytest.mark.parametrize("multiple", [0.9, 1.0, 2.0])
def test_who_stays_near_the_tolerance_splits_nobody(multiple: float) -> None:
    """Fellows accuse it, so that judges vote who see it on either side. The driver raises if honest peers disagree."""
    votes: list[set[str]] = []
    for seed in range(4):
        members = frozenset({1, 2, 5})
        accuse = claim_about_target("wrong_gradient", members)
        attackers = {i: Byzantine(at_distance(multiple), claims=accuse) for i in members}
        sizes = {peer: 0.5 * TOL * (peer % 4) / 3 for peer in range(9)}
        run = run_mixed(attackers, peers=9, seed=seed, steps=20, sizes=sizes, until_banned=members)
        assert set(run.removed) <= members, f"seed {seed}: {run.entries}"
        votes += [set(entry.votes.values()) for entry in run.entries]
    assert votes
    if multiple == 0.9:
        assert {GUILTY, FALSE_CLAIM} in votes, "no judges differed: this tests nothing"


@pytest.mark.parametrize(("multiple", "falls"), [(0.4, False), (2.6, True)])
def test_beyond_what_rounding_can_explain_everybody_falls_and_within_it_nobody(multiple: float, falls: bool) -> None:
    for seed in range(4):
        steps = 80 if falls else 15
        run = run_mixed({3: Byzantine(at_distance(multiple))}, seed=seed, steps=steps, until_banned=frozenset({3}))
        assert set(run.removed) == ({3} if falls else set()), f"seed {seed}"


def confided(seed: int) -> tuple[Run, frozenset[int]]:
    """Two colluders' lies about a third one's right aggregates cancel; in trials they show their gradients to peer 0.

    So peer 0 alone can correct the sum, and finds it off.
    """
    members = frozenset({2, 3, 6})

    def lie(ctx: Context, report: Report) -> Report:
        sign = {2: 1.0, 3: -1.0, 6: 0.0}[ctx.peer]
        rows = [
            (row[0] + sign * 0.2 if owner == 6 else row[0],)
            for row, owner in zip(report.products, ctx.record.owners, strict=True)
        ]
        return Report(report.norms, tuple(rows), report.missing, report.sizes)

    def confide(phase: str, recipient: int, packets: Sequence[Packet]) -> Sequence[Packet]:
        of_one = len({packet.sender for packet in packets}) == 1  # its own gradient, not the parts it averaged
        hidden = phase == "disclose" or (phase.startswith(TRIAL) and of_one and recipient != 0)
        return () if hidden else packets

    def spare(ctx: Context, honest: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return tuple(claim for claim in honest if claim.accused not in members)

    attackers = {i: Byzantine(packets=confide, report=lie, claims=spare) for i in members}
    return run_mixed(attackers, peers=9, seed=seed, steps=30, until_banned=frozenset({2, 3})), members


def test_an_alarm_that_a_liar_confided_to_one_honest_peer_does_not_cost_that_peer_its_place() -> None:
    for seed in range(3):
        run, members = confided(seed)
        assert run.entries and set(run.removed) <= members, f"seed {seed}: {run.entries}"


class Overflowing(OwnNumerics):
    """Gets no number out of the batches of others."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **options: Any) -> None:
        super().gradients(params, requests, out, **options)
        for request, row in zip(requests, out, strict=True):
            if request.peer != self.peer:
                row.fill_(torch.inf)


def test_a_peer_that_has_nothing_to_compare_with_accuses_nobody_and_excuses() -> None:
    for seed in range(3):
        tasks = {peer: OwnNumerics(61, peer, 0.5 * TOL) for peer in range(7)} | {5: Overflowing(61, 5, 0.0)}
        config = ProtocolConfig(7, 1, run_id=f"overflow {seed}", relays=0, validation="tolerant", gradient_tol=TOL)
        driver = LocalDriver(config, QuadraticTask(61), behaviours={3: Byzantine(backwards)}, tasks=tasks)
        entries: list[Entry] = []
        while not entries and len(driver.honest[0].coins) < 80:
            entries += driver.step(torch.ones(61)).removed
        assert [entry.peers for entry in entries] == [(3,)] and entries[0].votes["5"] == EXCUSED


class NoAnswer(OwnNumerics):
    """Gets no number out of a batch on trial, as nobody honest does; a validator computes its target's in time."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **options: Any) -> None:
        super().gradients(params, requests, out, **options)
        for request, row in zip(requests, out, strict=True):
            if request.purpose is Purpose.JUDGE:
                row.fill_(torch.inf)


@pytest.mark.parametrize("kind", ["wrong_gradient", "undisclosed"])
def test_judges_that_have_nothing_to_compare_with_cost_nobody_its_place(kind: str) -> None:
    """Neither an honest accuser of a liar, nor an honest target of whom a liar says that it showed nothing."""
    liars = {3: Byzantine(backwards) if kind == "wrong_gradient" else Byzantine(claims=claim_about_target(kind))}
    tasks = {peer: NoAnswer(61, peer, 0.0) for peer in range(7)}
    config = ProtocolConfig(7, 1, run_id="no answer", relays=0, validation="tolerant", gradient_tol=TOL)
    driver = LocalDriver(config, QuadraticTask(61), behaviours=liars, tasks=tasks)
    trials = 0
    for _ in range(12):
        assert not driver.step(torch.ones(61)).removed
        trials += any(claim.kind == kind for claim in driver.peers[0].current.trials.get(0, ()))
    assert trials
