"""Over many seeds: every attacker is banned, no honest peer ever, whatever mixture the attackers are."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

from btard.attacks import ATTACKS, make_attack
from btard.attacks.registry import options_of
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.hashing import stream
from tests.protocol.cohort import run_cohort

ALWAYS_ON = ["sign_flip", "alie", "ipm", "random_direction", "rop"]


@pytest.mark.parametrize("seed", range(20))
def test_seven_of_sixteen_are_all_banned(seed: int) -> None:
    members = frozenset(int(i) + 1 for i in stream("members", seed).choice(15, 7, replace=False))
    collusion = Collusion(members, 16, seed)
    attack = ALWAYS_ON[seed % len(ALWAYS_ON)]
    attackers: dict[int, Behaviour] = {i: make_attack(attack, collusion, start=2) for i in sorted(members)}
    run = run_cohort(
        attackers, peers=16, d=31, seed=seed, steps=250, collusion=collusion, until_banned=members, tau=0.5
    )
    assert set(run.removed) == members, f"seed {seed}"
    assert all(entry.kind == "wrong_gradient" and entry.step > 2 for entry in run.entries)
    assert float(run.params.norm()) < 10 * float(torch.ones(31).norm())  # clipping bounds what got in before


SEEDS = int(os.environ.get("BTARD_SOAK_SEEDS", "40"))
"""More for a longer soak. A failure names its seed."""

ELIMINATING = {"withheld_part", "withheld_aggregate"}


def mixture(seed: int) -> tuple[dict[int, Behaviour], int, int, Collusion]:
    """A random cohort: (attackers, peers, validators, what they share)."""
    rng: np.random.Generator = stream("mixture", seed)
    peers, validators = int(rng.integers(5, 13)), int(rng.integers(1, 3))
    count = int(rng.integers(1, max(2, (peers - validators + 1) // 2)))
    members = frozenset(int(i) for i in rng.choice(peers, count, replace=False))
    collusion = Collusion(members, peers, seed)
    attackers: dict[int, Behaviour] = {}
    for i in sorted(members):
        name = str(rng.choice(sorted(ATTACKS)))
        # Any of an option's choices: kinds of false accusations, phases of silence, what is sent instead of a part.
        options: dict[str, Any] = {o.name: str(rng.choice(o.choices)) for o in options_of(ATTACKS[name]) if o.choices}
        if name == "delayed_gradient":
            options["delay"] = 2
        attackers[i] = make_attack(
            name, collusion, start=int(rng.integers(0, 4)), every=int(rng.integers(1, 3)), **options
        )
    return attackers, peers, validators, collusion


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_mixture_of_attacks_gets_an_honest_peer_banned(seed: int) -> None:
    attackers, peers, validators, collusion = mixture(seed)
    run = run_cohort(attackers, peers=peers, d=29, seed=seed, steps=14, collusion=collusion, validators=validators)
    honest = set(run.removed) - collusion.members
    traders = {i for i in attackers if getattr(attackers[i], "name", "") in ELIMINATING | {"false_accusation"}}
    assert len(honest) <= len(traders & set(run.removed)), f"seed {seed}: {run.entries}"
    for entry in run.entries:
        if honest & set(entry.peers):  # the documented trade, and nothing else
            assert entry.verdict == "eliminated" and traders & set(entry.peers), f"seed {seed}: {entry}"
    assert len({peer.ledger.head for peer in run.driver.honest}) == 1
