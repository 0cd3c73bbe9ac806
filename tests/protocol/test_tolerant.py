"""Tolerant validation: honest peers with different numerics stay, whatever the others do; wrong gradients fall."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from btard.attacks import ATTACKS, make_attack
from btard.drivers.compute import CohortCompute
from btard.drivers.history import ParameterHistory
from btard.drivers.local import LocalDriver
from btard.protocol import peer, validate
from btard.protocol.behaviour import HONEST
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.identity import Identity
from btard.protocol.messages import GUILTY
from btard.task import QuadraticTask
from scripts import mixtures
from tests.protocol.tolerant import TOL, Byzantine, OwnNumerics, at_distance, backwards, from_validators, run_mixed

GRADIENT_ATTACKS = [name for name, attack in ATTACKS.items() if attack.level == "gradient"]


@pytest.mark.parametrize("validators", [1, 3])
def test_over_twenty_seeds_no_honest_peer_is_banned_for_its_numerics(validators: int) -> None:
    for seed in range(20):
        run = run_mixed(seed=seed, validators=validators, cosine_tol=TOL**2)
        assert not run.entries, f"seed {seed}: {run.entries}"


def test_in_exact_validation_the_same_cohort_falls_apart() -> None:
    assert run_mixed(validation="exact", steps=3).entries


def test_one_machine_in_tolerant_validation_trains_to_the_same_bits_as_in_exact() -> None:
    same = dict.fromkeys(range(7), 0.0)
    exact, tolerant = run_mixed(sizes=same, validation="exact"), run_mixed(sizes=same)
    assert torch.equal(exact.params, tolerant.params) and not tolerant.entries


ATTACK_ROWS = [(name, {}) for name in GRADIENT_ATTACKS if name not in ("ipm", "delayed_gradient")]
ATTACK_ROWS += [("ipm", {"epsilon": 0.1}), ("ipm", {"epsilon": 0.6}), ("delayed_gradient", {"delay": 2})]


@pytest.mark.parametrize(("attack", "options"), ATTACK_ROWS)
def test_every_gradient_attack_is_caught_and_nobody_else(attack: str, options: dict[str, Any]) -> None:
    for seed in range(4):
        members = frozenset({1 + seed, 1 + (seed + 2) % 6})
        collusion = Collusion(members, 7, seed)
        attackers = {i: make_attack(attack, collusion, start=2, **options) for i in members}
        run = run_mixed(attackers, seed=seed, steps=120, collusion=collusion, until_banned=members)
        assert set(run.removed) == members, f"seed {seed}: {run.entries}"
        assert {entry.kind for entry in run.entries} == {"wrong_gradient"}
        assert {entry.verdict for entry in run.entries} == {GUILTY}


@pytest.mark.parametrize("seed", range(20))
def test_no_mixture_of_attacks_gets_an_honest_peer_banned(seed: int) -> None:
    mixture = mixtures.draw(seed, largest=9)
    driver = LocalDriver(
        replace(mixture.config, validation="tolerant", gradient_tol=TOL),
        QuadraticTask(mixtures.D),
        behaviours=mixture.attackers,
        collusion=mixture.collusion,
        links=mixture.links,
        tasks={peer: OwnNumerics(mixtures.D, peer, 0.5 * TOL) for peer in range(mixture.config.peers)},
    )
    mixtures.check(mixture, [entry for _ in range(10) for entry in driver.step(torch.ones(mixtures.D)).removed])


def test_clipped_gradients_are_compared_after_clipping() -> None:
    collusion = Collusion(frozenset({2, 3}), 7)
    attackers = {i: make_attack("sign_flip", collusion, start=1, scale=1.0) for i in (2, 3)}
    run = run_mixed(attackers, steps=80, collusion=collusion, clip_lambda=0.5, until_banned=frozenset({2, 3}))
    assert set(run.removed) == {2, 3}


def test_a_wrong_aggregate_that_cooked_reports_had_hidden_comes_to_light() -> None:
    kinds = set()
    for seed in range(4):
        members = frozenset({2, 5})
        collusion = Collusion(members, 7, seed)
        attackers = {i: make_attack("colluding_aggregate", collusion, start=2, scale=2.0) for i in members}
        run = run_mixed(attackers, seed=seed, steps=60, collusion=collusion, until_banned=members)
        assert set(run.removed) == members, f"seed {seed}: {run.entries}"
        kinds |= {entry.kind for entry in run.entries}
    assert kinds == {"wrong_gradient", "wrong_aggregate"}


def test_a_resumed_run_goes_on_to_the_same_bits() -> None:
    def driver() -> LocalDriver:
        config = ProtocolConfig(7, 1, run_id="resume", validation="tolerant", gradient_tol=TOL)
        tasks = {peer: OwnNumerics(61, peer, 0.5 * TOL) for peer in range(4)}
        return LocalDriver(config, QuadraticTask(61), behaviours={6: Byzantine(at_distance(1.0))}, tasks=tasks)

    whole, first, second = driver(), driver(), driver()
    params = torch.ones(61)
    for _ in range(5):
        assert torch.equal(whole.step(params).gradient, first.step(params).gradient)
    state, tensors = first.state()
    second.restore(state, {name: tensor.clone() for name, tensor in tensors.items()}, life=b"resumed")
    for _ in range(5):
        expected, got = whole.step(params), second.step(params)
        assert torch.equal(expected.gradient, got.gradient) and expected.removed == got.removed


@pytest.mark.parametrize("mode", ["batched", "per_peer"])
def test_everybody_is_answered_by_its_own_task(mode: Any) -> None:
    common, other = QuadraticTask(5), OwnNumerics(5, 1, 0.5)
    history = ParameterHistory(5, 2)
    history.record(0, torch.zeros(5), 4)
    compute = CohortCompute(common, history, mode, {1: other, 2: other})
    requests = [Compute(0, peer, bytes([peer]) * 32) for peer in (0, 1, 2, 1)]
    rows = compute.answer(0, requests, [0, 1, 2, 3])
    for row, request, task in zip(rows, requests, (common, other, other, common), strict=True):
        expected = torch.empty(1, 5)
        task.gradients(torch.zeros(5), [request], expected)
        assert torch.equal(row, expected[0])
    with pytest.raises(ValueError, match=r"peer 1 has 6 parameters, the cohort's has 5"):
        CohortCompute(common, history, mode, {1: QuadraticTask(6)})


@pytest.mark.parametrize("attacks", [False, True])
def test_a_newcomer_shows_its_gradients_to_its_validators(attacks: bool) -> None:
    config = ProtocolConfig(6, run_id="newcomer", validation="tolerant", gradient_tol=TOL, probation=3)
    tasks = {peer: OwnNumerics(31, peer, 0.5 * TOL) for peer in range(7)}
    driver = LocalDriver(config, QuadraticTask(31), tasks=tasks)
    driver.step(torch.ones(31))
    driver.join(Identity.from_seed("newcomer", 6), Byzantine(backwards) if attacks else HONEST)
    entries = [entry for _ in range(15) for entry in driver.step(torch.ones(31)).removed]
    removed = [(entry.kind, entry.peers) for entry in entries if entry.peers]
    assert removed == ([("wrong_gradient", (6,))] if attacks else [])
    assert (6 in driver.honest[0].active) != attacks


@pytest.mark.parametrize("removed", ["distance", "claim"])
def test_each_check_is_needed(removed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the distance a shown wrong gradient passes, without the claim one that is not shown does."""
    attacker = Byzantine(backwards, from_validators if removed == "claim" else None)
    assert set(run_mixed({3: attacker}, steps=30, until_banned=frozenset({3})).removed) == {3}
    if removed == "distance":
        monkeypatch.setattr(validate, "too_far", lambda *a, **k: False)
    else:
        honest = validate.validate
        unclaimed = lambda *a: [claim for claim in honest(*a) if claim.kind != "undisclosed"]  # noqa: E731
        monkeypatch.setattr(peer, "validate", unclaimed)
    assert not run_mixed({3: attacker}, steps=30).entries
