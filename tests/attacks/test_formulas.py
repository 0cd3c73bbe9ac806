"""Every gradient attack against answers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from btard.attacks import Collusion, make_attack
from btard.attacks.cohort import alie_z
from btard.protocol.effects import Compute
from btard.protocol.hashing import batch_seed, digest

HONEST = torch.tensor([[1.0, 2.0, 3.0, 4.0], [3.0, 2.0, 1.0, 0.0], [2.0, 2.0, 2.0, 5.0]])
MEAN = torch.tensor([2.0, 2.0, 2.0, 3.0])
DEVIATION = torch.tensor([math.sqrt(2 / 3), 0.0, math.sqrt(2 / 3), math.sqrt(14 / 3)])
OWN = torch.tensor([3.0, -4.0, 0.0, 0.0])


def test_sign_flip(collude, context):
    attack = make_attack("sign_flip", collude(HONEST), scale=10)
    assert attack.gradient(context(), OWN).tolist() == [-30.0, 40.0, 0.0, 0.0]
    assert make_attack("sign_flip", collude(HONEST)).gradient(context(), OWN)[0] == -3000.0


def test_random_direction_is_common_constant_and_scaled(collude, context):
    collusion = collude(HONEST)
    first, second = make_attack("random_direction", collusion), make_attack("random_direction", collusion)
    sent = first.gradient(context(peer=3), OWN)
    assert torch.linalg.vector_norm(sent).item() == pytest.approx(5000.0, rel=1e-6)
    assert torch.equal(second.gradient(context(peer=4), OWN), sent)
    collusion.observe(6, dict(enumerate(HONEST)))
    assert torch.equal(first.gradient(context(peer=3, step=6), OWN), sent)
    assert torch.allclose(first.gradient(context(), 2 * OWN), 2 * sent)
    elsewhere = make_attack("random_direction", Collusion(collusion.members, 5, seed=4)).gradient(context(), OWN)
    assert not torch.allclose(elsewhere, sent)


def test_random_direction_per_tensor_is_as_long_as_each_tensors_gradient(collude, context):
    collusion = Collusion(frozenset({3, 4}), 5, seed=3, tensors=(1, len(OWN) - 1))
    sent = make_attack("random_direction", collusion, per="tensor", scale=10.0).gradient(context(peer=3), OWN)
    for mine, own in zip(sent.split(collusion.tensors), OWN.split(collusion.tensors), strict=True):
        assert mine.norm().item() == pytest.approx(10 * own.norm().item())
    with pytest.raises(RuntimeError, match="which tensors a gradient has"):
        make_attack("random_direction", collude(HONEST), per="tensor").gradient(context(peer=3), OWN)


def test_label_flip_only_changes_the_labels(collude, context):
    asked = Compute(5, 7, b"seed")
    assert make_attack("label_flip", collude(HONEST)).request(context(), asked) == Compute(
        5, 7, b"seed", flip_labels=True
    )


@pytest.mark.parametrize(("delay", "then"), [(1, 4), (2, 3), (5, 0), (1000, 0)])
def test_delayed_gradient_asks_for_the_public_batch_of_that_step(collude, context, delay, then):
    attack = make_attack("delayed_gradient", collude(HONEST), delay=delay)
    asked = attack.request(context(), Compute(5, 7, b"seed"))
    assert asked == Compute(then, 7, batch_seed("test", then, 7, digest("coin", then - 1)))
    assert attack.lookback == delay


@pytest.mark.parametrize("epsilon", [0.1, 0.6, 3.0])
def test_ipm(collude, context, epsilon):
    sent = make_attack("ipm", collude(HONEST), epsilon=epsilon).gradient(context(), OWN)
    assert torch.allclose(sent, -epsilon * MEAN)


# s = floor(n/2 + 1) - b honest peers must be beyond the attackers; the quantiles are those of a printed table.
@pytest.mark.parametrize(
    ("n", "b", "p", "z"),
    [(16, 7, 7 / 9, 0.7647), (16, 3, 7 / 13, 0.0966), (50, 24, 24 / 26, 1.4261), (25, 12, 12 / 13, 1.4261)],
)
def test_alie_z(n, b, p, z):
    assert alie_z(n, b) == pytest.approx(z, abs=1e-4)
    assert 0.5 * (1 + math.erf(alie_z(n, b) / math.sqrt(2))) == pytest.approx(p, abs=1e-12)


def test_alie_uses_the_population_deviation(collude, context):
    sent = make_attack("alie", collude(HONEST), z=2.0).gradient(context(), OWN)
    assert torch.allclose(sent, MEAN - 2 * DEVIATION)
    by_formula = make_attack("alie", collude(HONEST, members=2)).gradient(context(), OWN)
    # n = 5, b = 2: s = 1, quantile of 2/3.
    assert torch.allclose(by_formula, MEAN - 0.430727 * DEVIATION, atol=1e-5)


def test_alie_without_a_quantile_says_what_to_do():
    with pytest.raises(ValueError, match="give z"):
        make_attack("alie", Collusion(frozenset(range(9)), 16))
    make_attack("alie", Collusion(frozenset(range(9)), 16), z=1.0)


def test_noise(collude, context):
    attack = make_attack("noise", collude(HONEST), scale=2.0)
    own = torch.ones(40_000)
    sent = attack.gradient(context(), own)
    assert float(sent.std()) == pytest.approx(2.0, rel=0.02)  # 2 * ||own|| / sqrt(d)
    assert abs(float(sent.mean())) < 0.06
    added = make_attack("noise", collude(HONEST), scale=2.0, mode="add").gradient(context(), own)
    assert torch.allclose(added, own + sent)
    assert torch.equal(attack.gradient(context(), own), sent)
    assert not torch.equal(attack.gradient(context(peer=6), own), sent)
    assert not torch.equal(attack.gradient(context(step=6), own), sent)


def test_zero(collude, context):
    assert make_attack("zero", collude(HONEST)).gradient(context(), OWN).tolist() == [0.0] * 4


@pytest.mark.parametrize(("victim", "row"), [(0, 0), (1, 1), (2, 2), (3, 0), (7, 0)])
def test_copy_takes_the_victim_or_the_next_worker(collude, context, victim, row):
    sent = make_attack("copy", collude(HONEST), victim=victim).gradient(context(), OWN)
    assert torch.equal(sent, HONEST[row])


def test_copy_skips_a_victim_that_validates(context):
    collusion = Collusion(frozenset({0}), 4)
    collusion.observe(5, {1: HONEST[0], 3: HONEST[1]})
    assert torch.equal(make_attack("copy", collusion, victim=2).gradient(context(), OWN), HONEST[1])


@pytest.mark.parametrize("name", ["ipm", "alie", "copy", "min_max", "min_sum", "rop"])
def test_cohort_attacks_share_their_vector_and_leave_the_honest_gradients_alone(collude, context, name):
    collusion, before = collude(HONEST.clone()), HONEST.clone()
    sent = [make_attack(name, collusion).gradient(context(peer=peer), OWN) for peer in (3, 4)]
    assert torch.equal(sent[0], sent[1])
    assert torch.equal(collusion.honest(), before)
    collusion.observe(6, dict(enumerate(HONEST + 1)))
    assert not torch.equal(make_attack(name, collusion).gradient(context(step=6), OWN), sent[0])


@pytest.mark.parametrize("name", ["ipm", "alie", "copy", "min_max", "min_sum", "rop"])
def test_cohort_attacks_say_when_nothing_was_observed(context, name):
    attack = make_attack(name, Collusion(frozenset({0}), 4), **({"z": 1.0} if name == "alie" else {}))
    assert attack.requires_cohort
    with pytest.raises(RuntimeError, match="no honest gradient was observed"):
        attack.gradient(context(), OWN)
