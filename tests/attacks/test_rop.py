"""ROP: angle, length and place of the perturbation."""

from __future__ import annotations

import math

import pytest
import torch

from btard.attacks import make_attack
from btard.attacks.rop import previous_aggregate, rotated_perturbation
from btard.protocol.record import StepRecord
from btard.protocol.split import Split

HONEST = torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 1.0, 0.0], [2.0, 2.0, 2.0, 5.0]])
MEAN = HONEST.mean(dim=0)


def angle_between(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, float(a @ b / (a.norm() * b.norm()))))))


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0, 135.0, 180.0])
def test_the_perturbation_has_unit_length_and_the_angle(angle):
    reference = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    q = rotated_perturbation(reference, angle)
    assert q.norm().item() == pytest.approx(1.0)
    assert angle_between(q, reference) == pytest.approx(angle, abs=1e-4)


@pytest.mark.parametrize("reference", [torch.zeros(6), torch.full((6,), -2.5), torch.ones(6)])
def test_without_a_plane_it_is_the_constant_vector(reference):
    assert torch.allclose(rotated_perturbation(reference, 90.0), torch.full((6,), 1 / math.sqrt(6)))


def test_by_hand():
    # o = (1, 1) - (1, 0) = (0, 1)
    assert torch.allclose(rotated_perturbation(torch.tensor([5.0, 0.0]), 90.0), torch.tensor([0.0, 1.0]), atol=1e-6)
    assert torch.allclose(rotated_perturbation(torch.tensor([5.0, 0.0]), 180.0), torch.tensor([-1.0, 0.0]), atol=1e-6)


def last_step(aggregates: dict[int, torch.Tensor], skipped: set[int] | None = None) -> StepRecord:
    record = StepRecord(4, tuple(range(8)), {}, b"")
    record.split, record.aggregates, record.skipped = Split(4, 2), aggregates, skipped or set()
    return record


def test_the_reference_is_the_last_aggregate_and_the_mean_where_there_is_none():
    a, b = torch.tensor([7.0, 8.0]), torch.tensor([9.0, 1.0])
    assert previous_aggregate(None, MEAN) is MEAN
    assert previous_aggregate(last_step({0: a, 1: b}), MEAN).tolist() == [7.0, 8.0, 9.0, 1.0]
    assert previous_aggregate(last_step({1: b}), MEAN).tolist() == [2.0, 2.0, 9.0, 1.0]
    assert previous_aggregate(last_step({0: a, 1: b}, {0}), MEAN).tolist() == [2.0, 2.0, 9.0, 1.0]
    assert MEAN.tolist() == [2.0, 2.0, 2.0, 3.0]


@pytest.mark.parametrize(("lam", "relocation"), [(0.9, 1.0), (0.5, 0.25), (0.0, 0.0), (1.0, 1.0)])
def test_place_and_direction(collude, context, lam, relocation):
    previous = torch.tensor([1.0, -1.0, 4.0, 0.0])
    attack = make_attack("rop", collude(HONEST), lam=lam, relocation=relocation, z=3.0)
    sent = attack.gradient(context(last=last_step({0: previous[:2], 1: previous[2:]})), HONEST[0])
    push = sent - (relocation * previous + (1 - relocation) * MEAN)
    assert push.norm().item() == pytest.approx(3.0, rel=1e-5)
    assert angle_between(push, lam * previous + (1 - lam) * MEAN) == pytest.approx(90.0, abs=1e-3)


def test_length_by_default(collude, context):
    def length(tau: float | None, **options: float) -> float:
        ctx = context() if tau is None else context(tau=tau)
        return float((make_attack("rop", collude(HONEST), **options).gradient(ctx, MEAN) - MEAN).norm())

    # 8 peers of which one validates: 7 parts.
    assert length(2.0) == pytest.approx(2 * math.sqrt(7), rel=1e-5)
    assert length(2.0, scale=0.5) == pytest.approx(math.sqrt(7), rel=1e-5)
    # ||g_i - mu||^2 = 3, 12, 4 + 1 - 1: (1 + 1 + 1, 1 + 1 + 9, 4)
    spread = math.sqrt((3 + 11 + 4) / 3)
    assert length(math.inf) == length(None) == pytest.approx(spread, rel=1e-5)
