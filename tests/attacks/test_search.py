"""ALIE and IPM with a factor that is searched, against rules whose worst factor is known."""

from __future__ import annotations

import math

import pytest
import torch

from btard.aggregation import centered_clip, coordinate_median
from btard.attacks import Collusion, make_attack
from btard.attacks.search import Rehearsal, best_factor
from btard.protocol.aggregate import clip_parts

# Four honest peers and one attacker; mu = (2, 0), sigma = (1, 0).
HONEST = torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [3.0, 0.0]])


@pytest.mark.parametrize("trials", [1, 2, 3, 7, 16, 30])
def test_the_best_of_so_many_factors_up_to_the_limit_is_taken(trials):
    tried: list[float] = []

    def harm(factor):
        tried.append(factor)
        return -abs(factor - 3.0)

    best = best_factor(harm, 16.0, trials)
    assert len(tried) == trials and max(tried) == 16.0 and min(tried) > 0
    assert best == min(tried, key=lambda factor: abs(factor - 3.0))
    assert trials < 16 or best == pytest.approx(3.0, rel=0.05)


def test_a_rule_that_drops_far_rows_does_not_end_the_search():
    """No harm beyond 0.5, none below 0.2: the peak is found although the largest factors do nothing."""
    assert best_factor(lambda z: z if 0.2 < z <= 0.5 else 0.0, 16.0, 20) == pytest.approx(0.5, rel=0.05)
    assert best_factor(lambda z: 0.0, 16.0, 8) == 2.0, "of equals the smallest"


def against(rule, name="alie_search", **options):
    """The factor that the attacker sends at a server with `rule`."""

    def sent(collude, context):
        collusion = collude(HONEST, members=1)
        ctx = context(peer=4, peers=5, d=2, rule=rule)
        ctx = type(ctx)(**{**{f: getattr(ctx, f) for f in ctx.__struct_fields__}, "assignments": {}})
        vector = make_attack(name, collusion, **options).gradient(ctx, HONEST[0])
        return float(2 - vector[0]) if name == "alie_search" else float(-vector[0] / 2)

    return sent


def test_alie_at_a_mean_goes_to_the_limit(collude, context):
    assert against(lambda x: x.mean(0), limit=8.0)(collude, context) == 8.0


def test_alie_at_a_median_goes_as_far_as_it_stays_the_median(collude, context):
    """Of 1, 1, 3, 3 and 2 - z the median is 2 - z down to z = 1 and 1 from there on: harm is min(z, 1)."""
    z = against(coordinate_median, trials=16)(collude, context)
    assert z == pytest.approx(1.0, rel=1e-5)


def test_alie_at_a_rule_that_drops_far_rows_stays_near(collude, context):
    def near(x):
        return x[(x[:, 0] - 2).abs() <= 1.25].mean(0)

    assert against(near, trials=24)(collude, context) == pytest.approx(1.25, rel=0.02)


def test_ipm_at_a_mean_and_at_a_clipped_mean(collude, context):
    assert against(lambda x: x.mean(0), "ipm_search")(collude, context) == 16.0
    # min(norm, 3): -epsilon * 2 counts up to 3, that is epsilon 1.5; beyond it harm is the same, below it less.
    clipped = lambda x: (x * (3 / x.norm(dim=1, keepdim=True).clamp(min=3))).mean(0)  # noqa: E731
    assert against(clipped, "ipm_search", trials=24)(collude, context) == pytest.approx(1.5, rel=0.34)


def test_without_a_server_the_rule_is_centered_clip_of_each_part():
    rows = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    whole = clip_parts(rows, 0.5)
    cuts = [(0, 3), (3, 6), (6, 8), (8, 10)]  # 10 = 3 + 3 + 2 + 2
    assert torch.equal(whole, torch.cat([centered_clip(rows[:, a:b], 0.5).value for a, b in cuts]))
    assert torch.allclose(clip_parts(rows, math.inf), rows.mean(0), atol=1e-6)


def test_rows_stand_where_the_peers_do_and_validators_send_none(context):
    collusion = Collusion(frozenset({0, 3, 4}), 6)
    collusion.observe(5, {1: torch.tensor([1.0]), 5: torch.tensor([5.0])})
    ctx = context(peer=3, peers=6, d=6, rule=lambda x: x.sum(0))
    rehearsal = Rehearsal(collusion, ctx)  # peer 0 validates; peer 2, honest, is away
    assert rehearsal.harm(torch.tensor([9.0])) == 1 + 9 + 9 + 5 - 3
    assert rehearsal.rows.flatten().tolist() == [1, 9, 9, 5]


def test_attackers_who_see_no_honest_gradient_take_their_own_for_it(context):
    collusion = Collusion(frozenset({3, 4}), 6)
    collusion.observe(5, {3: torch.tensor([3.0]), 4: torch.tensor([5.0])})
    rehearsal = Rehearsal(collusion, context(peer=3, peers=6, d=6, rule=lambda x: x.sum(0)))
    assert rehearsal.harm(torch.tensor([10.0])) == 3 + 5 + 10 + 10 - 4
    assert rehearsal.rows.flatten().tolist() == [3, 5, 10, 10]
