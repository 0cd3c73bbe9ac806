"""Min-Max and Min-Sum against their definitions, by brute force over gamma."""

from __future__ import annotations

import math

import pytest
import torch

from btard.attacks import make_attack
from btard.attacks import statistics as stats
from btard.attacks.cohort import largest_root, min_max_gamma, min_sum_gamma, perturbation

KINDS = ["std", "unit", "sign"]


def honest_rows(h: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(h, d, generator=generator) * torch.rand(d, generator=generator) + torch.randn(
        d, generator=generator
    )


def within(name: str, rows: torch.Tensor, sent: torch.Tensor) -> bool:
    """The attack's condition as its paper states it, in float64."""
    rows, sent = rows.double(), sent.double()
    between = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    to_sent = torch.linalg.vector_norm(rows - sent, dim=1)
    if name == "min_max":
        return bool(to_sent.max() <= between.max())
    return bool((to_sent**2).sum() <= (between**2).sum(dim=1).max())


@pytest.mark.parametrize("name", ["min_max", "min_sum"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("h", "d", "seed"), [(2, 3, 0), (4, 5, 1), (9, 30, 2), (9, 2, 3)])
def test_gamma_is_the_largest_that_is_allowed(name, kind, h, d, seed):
    rows = honest_rows(h, d, seed).double()
    mean = stats.mean_of(rows)
    p = perturbation(kind, mean, stats.deviation_of(rows, mean))
    spread = stats.spread_of(rows, mean, p)
    gamma = min_max_gamma(spread) if name == "min_max" else min_sum_gamma(spread)
    assert gamma > 0
    assert within(name, rows, mean + gamma * (1 - 1e-9) * p)
    for factor in (1 + 1e-9, 1.01, 2.0, 100.0):
        assert not within(name, rows, mean + gamma * factor * p)


@pytest.mark.parametrize("name", ["min_max", "min_sum"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_attack_sends_mean_plus_gamma_p(collude, context, name, kind):
    rows = honest_rows(6, 20, 7)
    sent = make_attack(name, collude(rows), perturbation=kind).gradient(context(), rows[0])
    mean = rows.mean(dim=0)
    p = {"std": -rows.std(dim=0, correction=0), "unit": -mean / mean.norm(), "sign": -mean.sign()}[kind]
    gamma = float((sent - mean) @ p / (p @ p))
    assert torch.allclose(sent, mean + gamma * p, atol=1e-5)
    assert within(name, rows, mean + 0.9999 * gamma * p) and not within(name, rows, mean + 1.0001 * gamma * p)


def test_by_hand(collude, context):
    """Two gradients at 0 and 2 on the axis, mean 1: min_max may go 2 away from the farther, min_sum in the sum."""
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    # p = -sigma = (-1, 0). min_max: |2 - (1 - gamma)| <= 2, gamma = 1.
    assert make_attack("min_max", collude(rows)).gradient(context(), rows[0]).tolist() == pytest.approx([0.0, 1.0])
    # min_sum: (1 - gamma)^2 + (1 + gamma)^2 <= 4, gamma = 1.
    assert make_attack("min_sum", collude(rows)).gradient(context(), rows[0]).tolist() == pytest.approx([0.0, 1.0])


def test_min_sum_is_the_largest_deviation_over_the_norm_of_p():
    rows = honest_rows(7, 11, 4).double()
    mean = stats.mean_of(rows)
    p = perturbation("sign", mean, None)
    farthest = float(torch.linalg.vector_norm(rows - mean, dim=1).max())
    assert min_sum_gamma(stats.spread_of(rows, mean, p)) == pytest.approx(farthest / math.sqrt(11))


@pytest.mark.parametrize("name", ["min_max", "min_sum"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [torch.ones(1, 3), torch.ones(4, 3), torch.zeros(3, 3)])
def test_without_spread_the_mean_is_sent(collude, context, name, kind, rows):
    sent = make_attack(name, collude(rows), perturbation=kind).gradient(context(), rows[0])
    assert torch.equal(sent, rows[0])


def test_spread_does_not_depend_on_the_blocks(monkeypatch):
    rows = honest_rows(5, 103, 5)
    mean = stats.mean_of(rows)
    whole = stats.spread_of(rows, mean, rows[1])
    monkeypatch.setattr(stats, "CHUNK", 10)
    blocks = stats.spread_of(rows, mean, rows[1])
    assert torch.allclose(whole.gram, blocks.gram, rtol=1e-12) and torch.allclose(whole.along, blocks.along, rtol=1e-12)
    y = rows.double() - mean.double()
    assert torch.allclose(whole.gram, y @ y.T) and torch.allclose(whole.along, y @ rows[1].double())
    assert whole.square == pytest.approx(float(rows[1].double() @ rows[1].double()))


@pytest.mark.parametrize(
    ("a", "b", "c", "root"), [(1, 0, 4, 2), (1, 1, 3, 3), (1, -1, 3, 1), (2, 0, 0, 0), (0, 1, 1, 0)]
)
def test_largest_root(a, b, c, root):
    assert largest_root(a, b, c) == pytest.approx(root)
