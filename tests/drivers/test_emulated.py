"""The authors' simulation of the protocol: bans by chance, banned peers replaced."""

from __future__ import annotations

import math

import pytest
import torch

from btard.aggregation import centered_clip
from btard.attacks import make_attack
from btard.drivers.emulated import DRAWN, EmulatedDriver
from btard.drivers.rules import RuleView, applied
from btard.protocol.collusion import Collusion
from btard.protocol.law import chance_to_be_drawn, independent_law
from btard.task import QuadraticTask

PEERS, MEMBERS, D = 16, frozenset(range(9, 16)), 32


def make(seed: int = 0, *, tau: float = 1.0, attack: str | None = "sign_flip", **options: object) -> EmulatedDriver:
    collusion = Collusion(MEMBERS, PEERS, seed)
    behaviours = {i: make_attack(attack, collusion) for i in MEMBERS} if attack else {}
    task = QuadraticTask(D, noise=0.1)
    return EmulatedDriver(f"emulated/{seed}", PEERS, tau, task, behaviours=behaviours, collusion=collusion, **options)


def last_drawn(driver: EmulatedDriver) -> int:
    """Steps until everybody is banned, without the gradients, which have no part in it."""
    left, step = set(MEMBERS), 0
    while left:
        left -= {entry.peers[0] for entry in driver._ban(step, sorted(left))}
        step += 1
    return step


def last_ban(driver: EmulatedDriver, steps: int = 600) -> int:
    params = torch.zeros(D)
    bans: dict[int, int] = {}
    for step in range(steps):
        result = driver.step(params)
        assert all(entry.kind == DRAWN and not entry.accusers for entry in result.removed)
        bans |= {peer: step for entry in result.removed for peer in entry.peers}
        if len(bans) == len(MEMBERS):
            assert bans.keys() == MEMBERS
            return step
    raise AssertionError(f"only {len(bans)} attackers were banned in {steps} steps")


def test_the_last_attacker_is_gone_when_the_authors_law_says() -> None:
    p = chance_to_be_drawn(PEERS, len(MEMBERS))
    assert p == 9 / 256
    # The last of seven independent geometric variables: its mean, and the deviation of a mean of so many draws.
    survival = [1 - (1 - (1 - p) ** s) ** 7 for s in range(2000)]
    mean = sum(survival)
    deviation = math.sqrt(sum((2 * s + 1) * q for s, q in enumerate(survival)) - mean**2)
    assert mean == pytest.approx(72.95, abs=0.01)
    law = independent_law(PEERS, len(MEMBERS), 2000)
    assert law.sum(axis=1) == pytest.approx(1) and 1 + (1 - law[:, 0]).sum() == pytest.approx(mean)
    draws = 40
    found = sum(last_drawn(make(seed)) for seed in range(draws)) / draws
    assert abs(found - mean) < 3 * deviation / math.sqrt(draws)


@pytest.mark.parametrize("law", ["independent", "pairs"])
def test_a_banned_peer_is_replaced_by_an_honest_one_or_leaves(law: str) -> None:
    params = torch.ones(D)
    for replace in (True, False):
        driver = make(bans=law, replace_banned=replace)
        last_ban(driver)
        result = driver.step(params)
        assert result.active == (tuple(range(PEERS)) if replace else tuple(range(9)))
        assert not driver.behaviours if replace else set(driver.behaviours) == MEMBERS
        assert torch.allclose(result.gradient, params, atol=0.2), "nobody attacks any more"


def test_each_part_is_clipped_by_itself() -> None:
    driver = make(tau=0.3, attack=None)
    x = torch.randn(PEERS, D, generator=torch.Generator().manual_seed(0))
    expected = [centered_clip(x[:, first : first + 2].contiguous(), 0.3).value for first in range(0, D, 2)]
    assert torch.equal(applied(driver.rule, x, RuleView()), torch.cat(expected))


def test_an_interrupted_run_goes_on_to_the_same_bits() -> None:
    for options in ({}, {"bans": "pairs", "replace_banned": False}):
        whole, parts = make(3, **options), make(3, **options)
        a = b = torch.ones(D)
        for _ in range(40):
            a = a - 0.01 * whole.step(a).gradient
        for _ in range(20):
            b = b - 0.01 * parts.step(b).gradient
        resumed = make(3, **options)
        resumed.restore(*parts.state())
        for _ in range(20):
            b = b - 0.01 * resumed.step(b).gradient
        assert torch.equal(a, b) and len(whole.active) == len(resumed.active)
