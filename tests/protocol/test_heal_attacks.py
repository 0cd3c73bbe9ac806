"""Attacks on healing: lies, sacrifices, aborted coins and Sybils, what they cost and what they cannot do."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from btard.attacks import make_attack
from btard.protocol.collusion import Collusion
from btard.protocol.heal import HEALED
from btard.protocol.identity import Identity
from btard.protocol.ledger import GRADUATED
from tests.protocol.healing import MEMBERS, PEERS, START, Cohort, Plans, W, alike, attackers, check

# Liars.

ACCEPTED = ("oldest", "present", "opposite", "huge", "digests", "silent")
MALFORMED = ("short", "long", "empty", "nan", "infinite")


def with_liars(what: str, start: int = 0, **settings: Any) -> Cohort:
    """One attacker that hits and goes, and two that lie about the states from step `start` on."""
    liar = ("healing_lies", {"what": what})
    return Cohort(attackers({1: ("hit_and_run", {"start": START}), 3: liar, 5: liar}, start=start), **settings)


@cache
def without_lies(validation: str) -> Cohort:
    return with_liars("silent", start=1000, validation=validation).advance(START + 6)


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
@pytest.mark.parametrize("what", [*ACCEPTED, *MALFORMED])
def test_no_lie_of_fewer_than_half_changes_the_choice(what: str, validation: str) -> None:
    truth, lied = without_lies(validation), with_liars(what, validation=validation).advance(START + 6)
    check(lied)
    first = next(entry for entry in truth.entries if entry.kind == HEALED)
    assert first.about_step < first.step, "there is something to lie about"
    assert next(entry for entry in lied.entries if entry.kind == HEALED) == first
    if what in ACCEPTED:
        assert lied.entries == truth.entries
        assert torch.equal(lied.state_now["parameters"], truth.state_now["parameters"])
    else:
        gone = [entry for entry in lied.entries if entry.kind == "malformed_heal"]
        assert [(entry.step, entry.peers) for entry in gone] == [(first.step, (3,)), (first.step, (5,))]


# Who triggers healing, when, and what it costs.


@pytest.mark.parametrize("leave", ["silent", "eliminate", "betrayed"])
def test_who_hits_and_goes_leaves_no_trace(leave: str) -> None:
    steps = START + 14
    cohort = Cohort(alike("hit_and_run", hits=3, leave=leave)).advance(steps)
    unhealed = Cohort(alike("hit_and_run", hits=3, leave=leave), heal="off").advance(steps)
    lost = check(cohort, trade=leave == "eliminate")
    honest = Cohort().advance(steps - lost)
    assert cohort.removed >= MEMBERS
    assert cohort.loss < 1.2 * honest.loss < 0.15 * unhealed.loss


@pytest.mark.parametrize(("window", "healed"), [(6, True), (2, False)])
def test_who_stays_away_after_its_hit_is_healed_if_the_window_is_longer(window: int, healed: bool) -> None:
    """It is gone three steps later."""
    hit = attackers({1: ("hit_and_run", {"start": START, "hits": 1, "leave": "absent"})})
    cohort = Cohort(hit, byzantine=1, heal=window).advance(START + 6)
    assert [(entry.kind, entry.step) for entry in cohort.entries if entry.peers] == [("gone", START + 3)]
    assert check(cohort) > 0
    assert (cohort.healings[0][1] <= START) == healed, "else the hit itself is older than all states"


@pytest.mark.parametrize("leave", ["silent", "eliminate"])
def test_a_sacrifice_on_a_plateau_costs_no_more_than_the_window(leave: str) -> None:
    """The gradients are all noise there, so that states differ, and none is better for long."""
    cohort = Cohort(alike("hit_and_run", hits=0, leave=leave))
    cohort.on_plateau()
    cohort.advance(START + 6)
    assert cohort.removed >= MEMBERS and check(cohort, trade=True) <= W + 1, "all go in one step: one healing"


def test_bans_one_after_the_other_are_each_healed() -> None:
    cohort = Cohort(alike("hit_and_run", when="in_turn", hits=1), byzantine=3).advance(START + 12)
    assert cohort.removed == MEMBERS
    check(cohort)
    assert len(cohort.healings) > 1


def test_bans_in_the_step_in_which_a_healing_is_decided() -> None:
    """Who falls out in that step has done nothing that is still there: the next step has nothing to choose among."""
    plans = {1: ("hit_and_run", {"start": START, "hits": 1}), 3: ("hit_and_run", {"start": START + 1, "hits": 1})}
    cohort = Cohort(attackers(plans)).advance(START + 6)
    step = START + 2
    assert [e.step for e in cohort.entries if e.peers] == [step - 1, step]
    assert [healed for healed, _ in cohort.healings] == [step] and check(cohort) > 0


def test_several_bans_in_one_step_are_healed_at_once() -> None:
    cohort = Cohort(alike("hit_and_run", hits=1)).advance(START + 4)
    assert {e.step for e in cohort.entries if e.peers} == {START + 1}
    assert [healed for healed, _ in cohort.healings] == [START + 2] and check(cohort) > 0


# Sybils.


def with_sybil(attack: str, **options: Any) -> Cohort:
    """A newcomer that is admitted at once, and attacks later."""
    cohort = Cohort(probation=2, byzantine=1)
    cohort.enter(Identity.from_seed("sybil"), make_attack(attack, Collusion(frozenset(), PEERS, 0), **options))
    return cohort


def test_a_sybil_that_is_banned_on_purpose_reaches_back_to_its_membership_alone() -> None:
    cohort = with_sybil("hit_and_run", start=6, hits=0)
    cohort.on_plateau()
    cohort.advance(9)
    graduated = next(entry.step for entry in cohort.entries if entry.kind == GRADUATED)
    assert cohort.healings and check(cohort) <= cohort.healings[0][0] + 1 - (graduated + 1)
    looked_at = {int(step) for entry in cohort.entries for step in entry.losses}
    assert min(looked_at) == graduated + 1


def test_a_sybil_that_goes_does_not_have_the_harm_of_its_fellows_kept() -> None:
    """It reaches back to its membership, in the middle of the harm. The fellow's own removal reaches back further."""
    fellow = attackers({1: ("hit_and_run", {"start": 4, "hits": 4})})
    cohort = Cohort(fellow, byzantine=2, probation=2, heal=8, run_id="lock 2")
    sybil = make_attack("hit_and_run", Collusion(frozenset(), PEERS, 0), hits=0)
    cohort.enter(Identity.from_seed("sybil"), sybil)
    cohort.advance(14)
    assert [entry.peers for entry in cohort.entries if entry.peers] == [(PEERS,), (1,)]
    [(_, first), (_, second)] = cohort.healings
    assert second < first and second <= 4 and check(cohort)
    assert cohort.loss < 1.3 * Cohort(byzantine=0).advance(14 - check(cohort)).loss


def test_a_sybil_that_goes_on_probation_triggers_nothing() -> None:
    cohort = with_sybil("silent", phase="commit").advance(8)
    assert cohort.removed == {PEERS} and not cohort.healings and check(cohort) == 0


# The coin, with which the batch is drawn.


def test_who_aborts_the_coin_of_a_choice_brings_the_next_choice_about() -> None:
    """So nobody can have a batch drawn again until it is one that hides its harm."""
    plans: Plans = {
        1: ("hit_and_run", {"start": START, "hits": 0}),
        3: ("silent", {"start": START + 1, "phase": "coin_reveal"}),
    }
    cohort = Cohort(attackers(plans)).advance(START + 4)
    assert [(entry.step, entry.peers) for entry in cohort.entries if entry.peers] == [(START, (1,)), (START + 1, (3,))]
    assert cohort.healings == [(START + 1, START + 1), (START + 2, START + 2)] and check(cohort) == 0
