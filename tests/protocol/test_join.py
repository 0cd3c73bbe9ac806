"""An honest newcomer: its probation, the checks that are drawn for it, and what goes on around it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from btard.attacks import make_attack
from btard.drivers.links import Links
from btard.protocol.behaviour import HONEST, Behaviour, Context
from btard.protocol.choose import draw_check
from btard.protocol.collusion import Collusion
from btard.protocol.effects import Purpose
from btard.protocol.hashing import stream
from btard.protocol.signed import Signed
from tests.protocol.newcomers import PEERS, T_JOIN, Cohort, cohort, key, sign_flip

# An honest newcomer.


@pytest.mark.parametrize("validators", [0, 1])
def test_a_newcomer_downloads_serves_works_and_validates(validators: int) -> None:
    driver = cohort(validators=validators)
    driver.advance(3)
    newcomer = driver.enter(key("honest"))
    driver.advance(1)
    assert newcomer.peer is None and driver.peers[0].probation.keys() == {PEERS}, "admitted, not yet there"
    for served in range(T_JOIN):
        driver.advance(1)
        assert newcomer.peer == PEERS and driver.computed(PEERS) == served + 1
        assert all(PEERS not in result.workers for result in driver.results)
    assert driver.results[-1].active == tuple(range(PEERS + 1))
    driver.advance(40)
    assert not driver.removed
    assert all(PEERS in result.active for result in driver.results[3 + T_JOIN :])
    worked = [PEERS in result.workers for result in driver.results[4 + T_JOIN :]]
    if validators:
        assert 0.5 < np.mean(worked) < 1, "it has been a worker, and now and then a validator"
        tasks = {(r.peer, r.purpose) for r in driver.task.requests}  # type: ignore[attr-defined]
        assert (PEERS, Purpose.TRAIN) in tasks
    else:
        assert all(worked)
    kinds = [(entry.kind, entry.accused) for result in driver.results for entry in result.removed]
    assert kinds == [("join", PEERS), ("member", PEERS)]
    assert driver.peers[PEERS].ledger.head == driver.peers[0].ledger.head


def test_without_newcomers_a_run_is_the_same_with_joining_on_or_off() -> None:
    runs = [cohort(probation=probation) for probation in (None, 5)]
    for run in runs:
        run.advance(6)
    assert torch.equal(runs[0].params, runs[1].params)
    assert [r.workers for r in runs[0].results] == [r.workers for r in runs[1].results]


def test_gradients_on_probation_do_not_go_in() -> None:
    """With tau = inf the aggregate is the mean: it has to be that of the workers alone."""
    driver = cohort(tau=float("inf"))
    driver.enter(key("honest"))
    driver.advance(2)
    result, rows = driver.results[-1], driver.compute.memory
    mean = torch.stack([row for (step, peer, _, _), row in rows.items() if peer != PEERS and step == 1]).mean(0)
    assert any(peer == PEERS for _, peer, _, _ in rows)
    assert torch.allclose(result.gradient, mean, atol=1e-6)


def test_many_newcomers_come_in_one_after_the_other_and_all_become_members() -> None:
    driver = cohort(max_newcomers=2)
    for i in range(5):
        driver.enter(key("crowd", i))
    driver.advance(1)
    assert len(driver.peers[0].probation) == 2
    driver.advance(1)
    assert len(driver.peers[0].probation) == 4
    driver.advance(40)
    assert driver.results[-1].active == tuple(range(PEERS + 5)) and not driver.removed


def test_a_peer_that_came_later_helps_another_one_in() -> None:
    driver = cohort()
    driver.enter(key("first"))
    driver.advance(10)
    second = driver.enter(key("second"), donor=PEERS)
    driver.advance(10)
    assert second.peer == PEERS + 1 and not second.refused
    assert driver.results[-1].active == tuple(range(PEERS + 2))


def test_a_run_with_newcomers_resumes_to_the_same_bits() -> None:
    def start() -> Cohort:
        driver = cohort({1: sign_flip(start=9)}, collusion=Collusion(frozenset({1}), PEERS))
        return driver

    def joiners(driver: Cohort) -> None:
        driver.enter(key("a"))
        driver.enter(key("b"), sign_flip(start=8))
        driver.enter(key("c"))

    whole = start()
    joiners(whole)
    whole.advance(20)
    for stop in (1, 2, 6):
        first = start()
        joiners(first)
        first.advance(stop)
        state, tensors = first.state()
        state = json.loads(json.dumps(state))
        tensors = {name: x.clone() for name, x in tensors.items()}
        second = start()
        with_keys = start()
        joiners(second)
        second.params = first.params.clone()
        second.restore(state, tensors, life=b"resumed")
        second.replicas = dict.fromkeys(second.peers, first.params)
        second.advance(20 - stop)
        assert torch.equal(second.params, whole.params), f"stopped after {stop}"
        assert second.peers[0].ledger.head == whole.peers[0].ledger.head
        if stop > 1:
            with pytest.raises(ValueError, match="call `join` for it first"):
                with_keys.restore(state, tensors, life=b"resumed")


# Draws.


def test_newcomers_are_checked_about_equally_often() -> None:
    counts = {7: 0, 8: 0, 9: 0}
    for i in range(600):
        coin = stream("coins", i).bytes(32)
        pairs = draw_check(coin, dict.fromkeys(counts, ()), (0, 1, 2, 3, 4), {0: 1}, 1)
        assert pairs.pop(0) == 1
        [(validator, target)] = pairs.items()
        assert validator in (2, 3, 4)
        counts[target] += 1
    assert all(150 < count < 250 for count in counts.values())
    coin = stream("coins", 0).bytes(32)
    assert draw_check(coin, {}, (0, 1, 2), {0: 1}, 0) == {0: 1}
    pairs = draw_check(coin, {7: (2, 3)}, (0, 1, 2, 3, 4), {0: 1}, 1)
    assert pairs == {0: 1, 4: 7}, "who has not checked it yet goes first"


@pytest.mark.parametrize(("peers", "byzantine"), [(1, 0), (2, 1), (3, 1), (5, 2), (6, 2)])
def test_the_check_of_a_newcomer_leaves_an_honest_worker(peers: int, byzantine: int) -> None:
    """Where there is no room for one more validator, the check takes the place of one of the others now and then."""
    active, checked = tuple(range(peers)), 0
    usual = {} if peers < 3 else {0: 1} if peers < 6 else {0: 1, 2: 3}
    for i in range(200):
        pairs = draw_check(stream("coins", i).bytes(32), {9: ()}, active, usual, byzantine)
        checked += 9 in pairs.values()
        assert peers - len(pairs) > min(byzantine, (peers - 1) // 2)
        assert len(pairs) >= len(usual), "nobody is checked less than before"
    room = peers - len(usual) - 1 > min(byzantine, (peers - 1) // 2)
    assert checked == 200 if room else 70 < checked < 130 if usual else checked == 0


class AwayToHarm(Behaviour):
    """Is not heard where nobody else is left to work."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step >= 3

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        validators = set(ctx.assignments)
        others = set(ctx.active) - validators - {ctx.peer}
        return None if ctx.peer not in validators and not others else message, {}


class Ends(Behaviour):
    """An honest peer whose process ends in step 2."""

    def active(self, step: int) -> bool:
        return step == 2

    def crashed(self, ctx: Context, phase: str) -> bool:
        return ctx.step == 2 and phase == "coin_commit/0"


@pytest.mark.parametrize("seed", range(6))
def test_a_silent_liar_among_three_does_not_stop_the_run_of_a_newcomer(seed: int) -> None:
    driver = cohort({0: AwayToHarm(), 3: Ends(), 4: Ends()}, run_id=f"three {seed}", max_absences=20)
    driver.advance(3)
    assert driver.results[-1].active == (0, 1, 2), "what removed the other two proves nothing: b is as large as it was"
    driver.enter(key("into three", seed))
    driver.advance(8)  # raises NoGradient where the check takes the last honest worker
    assert driver.peers[1].probation or PEERS in driver.results[-1].active


# Together with the rest of the protocol.


@pytest.mark.parametrize("seed", range(4))
def test_lossy_links_and_slow_newcomers(seed: int) -> None:
    driver = cohort(byzantine=1, run_id=f"links {seed}", links=Links(loss=0.1, slow=0.05, seed=seed), max_absences=8)
    driver.enter(key("far away", seed))
    driver.advance(20)  # raises if the newcomer hears anything else than the members
    assert not driver.removed and PEERS in driver.results[-1].active


@pytest.mark.parametrize("mode", ["batched", "per_peer"])
def test_newcomers_under_tolerant_validation(mode: str) -> None:
    """They show their validators what they committed to, and are caught by distances like everybody."""
    driver = cohort(validation="tolerant", mode=mode, max_newcomers=2, byzantine=1)
    driver.enter(key("honest"))
    driver.enter(key("liar"), sign_flip(scale=1.0))
    driver.advance(14)
    numbers = {newcomer.peer: newcomer.behaviour.byzantine for newcomer in driver.joining.values()}
    assert set(driver.removed) == {number for number, byzantine in numbers.items() if byzantine}
    assert set(driver.removed.values()) == {"wrong_gradient"}
    assert {number for number in numbers if number is not None} - set(driver.removed) <= set(driver.results[-1].active)


# Everything at once.


JOINING_ATTACKS = ["sign_flip", "alie", "ipm", "zero", "misreport", "wrong_aggregate", "bad_part", "never_accuse"]


@pytest.mark.parametrize("seed", range(24))
def test_no_mixture_of_newcomers_and_attacks_gets_an_honest_peer_banned(seed: int) -> None:
    rng = stream("joins", seed)
    peers = int(rng.integers(6, 9))
    first = frozenset(int(i) for i in rng.choice(peers, int(rng.integers(0, 3)), replace=False))
    collusion = Collusion(first, peers, seed)

    def attacker() -> Behaviour:
        name = JOINING_ATTACKS[int(rng.integers(len(JOINING_ATTACKS)))]
        return make_attack(name, collusion, start=int(rng.integers(0, 12)), every=int(rng.integers(1, 3)))

    driver = cohort(
        {i: attacker() for i in sorted(first)},
        peers=peers,
        byzantine=2,
        run_id=f"joins {seed}",
        collusion=collusion,
        max_newcomers=2,
        probation=int(rng.integers(1, 6)),
        validators=int(rng.integers(0, 2)) + 1,
    )
    sybils = 0
    newcomers = []
    for i in range(16):
        if rng.random() < 0.3:
            bad = sybils < 2 - len(first) and rng.random() < 0.5
            sybils += bad
            newcomers.append(driver.enter(key("mixture", seed, i), attacker() if bad else HONEST))
        driver.advance(1)
    bad_newcomers = {n.peer for n in newcomers if n.behaviour.byzantine}
    assert set(driver.removed) <= first | bad_newcomers, f"seed {seed}: {driver.removed}"
    assert all(len(newcomer.refused) == 0 for newcomer in newcomers)
