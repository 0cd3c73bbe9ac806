"""Over many seeds: every attacker is banned, no honest peer ever, whatever mixture the attackers are."""

from __future__ import annotations

import os

import pytest
import torch

from btard.attacks import make_attack
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.hashing import stream
from btard.protocol.ledger import Entry
from scripts import mixtures
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
"""More for a longer soak, which `python -m scripts.soak` does with several processes."""


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_mixture_of_attacks_gets_an_honest_peer_banned(seed: int) -> None:
    """4 to 12 peers; lossy links and slow peers in some of the mixtures."""
    mixtures.run(mixtures.draw(seed, largest=12))


@pytest.mark.parametrize("seed", [5, 12])  # 32 peers with one attacker and lossy links; 30 with eleven
def test_large_mixtures(seed: int) -> None:
    mixtures.run(mixtures.draw(seed), steps=5)


def test_the_soak_notices_a_wronged_peer() -> None:
    mixture = mixtures.draw(0)
    honest = min(set(range(mixture.config.peers)) - mixture.collusion.members)
    wronged = Entry(0, "silent", "public", honest, (), (honest,), 0)
    with pytest.raises(AssertionError, match=f"seed 0: honest peer {honest} was removed"):
        mixtures.check(mixture, [wronged])
