"""`when`: attackers that pick their steps, by what they know before they have to commit."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from btard.attacks import Collusion, make_attack
from btard.attacks.base import Attack
from btard.drivers.local import LocalDriver
from btard.drivers.server import ServerDriver
from btard.protocol.behaviour import Context
from btard.protocol.config import ProtocolConfig
from btard.protocol.record import StepRecord
from btard.task import QuadraticTask

MEMBERS, PEERS = frozenset({1, 4, 6}), 8
STRATEGIES = ["checked", "covered", "seldom"]


def attack(when: str, **options: Any) -> Attack:
    return make_attack("sign_flip", Collusion(MEMBERS, PEERS, seed=2), when=when, **options)


def moment(peer: int, step: int = 5, validators: dict[int, int] | None = None) -> Context:
    record = StepRecord(step, tuple(range(PEERS)), validators or {}, b"coin")
    return Context(step, peer, "test", [b""] * (step + 1), record.active, record.assignments, record=record)


def test_checked_attacks_while_its_own_work_is_checked() -> None:
    assert attack("checked").acts(moment(1, validators={0: 1}))
    assert not attack("checked").acts(moment(4, validators={0: 1}))
    assert not attack("checked").acts(moment(1, validators={1: 4}))
    assert not attack("checked").acts(moment(1))


def test_covered_attacks_while_a_fellow_validates() -> None:
    assert attack("covered").acts(moment(1, validators={0: 2, 4: 3}))
    assert not attack("covered").acts(moment(4, validators={0: 2, 4: 3})), "itself is no fellow"
    assert not attack("covered").acts(moment(1, validators={0: 4}))


def test_seldom_attacks_in_a_tenth_of_the_steps_each_in_its_own() -> None:
    steps = [{i: attack("seldom").acts(moment(i, step)) for i in (1, 4)} for step in range(2000)]
    for i in (1, 4):
        assert np.mean([step[i] for step in steps]) == pytest.approx(0.1, abs=0.03)
    assert np.mean([step[1] and step[4] for step in steps]) == pytest.approx(0.01, abs=0.01)
    again = attack("seldom")
    assert [again.acts(moment(1, step)) for step in range(50)] == [step[1] for step in steps[:50]]


def test_the_plan_comes_first() -> None:
    late = attack("checked", start=6, every=2)
    assert [late.acts(moment(1, step, {0: 1})) for step in (5, 6, 7, 8)] == [False, True, False, True]


@pytest.mark.parametrize("when", STRATEGIES)
def test_without_validators_there_is_nothing_to_go_by(when: str) -> None:
    behaviours = {1: attack(when)}
    with pytest.raises(ValueError, match=f"when {when} is about escaping validators, and this run has none"):
        ServerDriver("server", PEERS, lambda x: x.mean(0), QuadraticTask(17), behaviours=behaviours)
    with pytest.raises(ValueError, match="attack sign_flip: when"):
        LocalDriver(ProtocolConfig(peers=PEERS, validators=0), QuadraticTask(17), behaviours=behaviours)
    LocalDriver(ProtocolConfig(peers=PEERS, validators=0), QuadraticTask(17), behaviours={1: attack("always")})


def driver_of(when: str, seed: int = 0, **options: Any) -> LocalDriver:
    collusion = Collusion(MEMBERS, PEERS, seed)
    behaviours = {i: make_attack("sign_flip", collusion, start=1, when=when, **options) for i in MEMBERS}
    config = ProtocolConfig(peers=PEERS, byzantine=3, run_id=f"moments {when} {seed}")
    return LocalDriver(config, QuadraticTask(33), behaviours=behaviours, collusion=collusion)


def advance(driver: LocalDriver, params: torch.Tensor, steps: int) -> tuple[torch.Tensor, list[str]]:
    lines: list[str] = []
    for _ in range(steps):
        result = driver.step(params)
        params, lines = params - 0.1 * result.gradient, lines + [entry.to_json() for entry in result.removed]
    return params, lines


@pytest.mark.parametrize(("when", "seed"), [("checked", 3), ("covered", 0), ("seldom", 2)])  # somebody is caught
def test_they_act_in_their_steps_only_and_resumed_runs_are_equal_to_the_bit(
    when: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    acted: list[tuple[int, int, bool]] = []
    honest = Attack.acts

    def note(self: Attack, ctx: Context) -> bool:
        picked = honest(self, ctx)
        acted.append((ctx.step, ctx.peer, picked))
        return picked

    monkeypatch.setattr(Attack, "acts", note)
    expected, lines = advance(driver_of(when, seed), torch.ones(33), 30)
    picked = {(step, peer) for step, peer, acts in acted if acts}
    assert picked and not picked & {(step, peer) for step, peer, acts in acted if not acts}, "one answer per step"
    assert lines and {json.loads(line)["accused"] for line in lines} <= MEMBERS
    caught = {(json.loads(line)["about_step"], json.loads(line)["accused"]) for line in lines}
    assert caught <= picked

    first = driver_of(when, seed)
    params, before = advance(first, torch.ones(33), 13)
    state, tensors = first.state()
    second = driver_of(when, seed)
    second.restore(json.loads(json.dumps(state)), {name: x.clone() for name, x in tensors.items()}, life=b"resumed")
    params, after = advance(second, params, 17)
    assert torch.equal(params, expected) and before + after == lines


def test_nobody_turns_in_a_fellow_in_steps_in_which_it_does_not_attack() -> None:
    """Every accuser is honest, though in a step without attack most validators of attackers' work are at rest."""
    spared = 0
    for seed in range(3):
        driver, params = driver_of("always", seed, every=2), torch.ones(33)
        for step in range(30):
            judges = dict(driver.peers[0].assignments)
            result = driver.step(params)
            params = params - 0.1 * result.gradient
            assert all(not set(entry.accusers) & MEMBERS for entry in result.removed)
            spared += step % 2 == 0 and any(v in MEMBERS and t in MEMBERS for v, t in judges.items())
    assert spared, "choose seeds with a fellow as validator, or the test shows nothing"
