"""Bounds, tails and proposals against values known from theory."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from btard.calibration import MOST_MARGIN, Tail, fit_tail, propose, round_up, upper_bound
from btard.protocol.hashing import stream


@pytest.mark.parametrize("trials", [1, 20, 1000])
def test_no_exceedance_is_the_rule_of_three(trials: int) -> None:
    assert upper_bound(0, trials) == pytest.approx(1 - 0.05 ** (1 / trials), rel=1e-9)
    if trials == 1000:
        assert upper_bound(0, trials) == pytest.approx(3 / trials, rel=0.01)


@pytest.mark.parametrize(
    ("k", "n", "bound"), [(1, 10, 0.394163), (5, 10, 0.777559), (2, 100, 0.061619), (9, 10, 0.994884)]
)
def test_clopper_pearson_as_tabulated(k: int, n: int, bound: float) -> None:
    """The beta quantile at 0.95 with parameters k + 1 and n - k."""
    assert upper_bound(k, n) == pytest.approx(bound, abs=2e-6)


def test_bounds_of_all_and_of_nothing() -> None:
    assert upper_bound(3, 3) == 1 and upper_bound(0, 0) == 1
    with pytest.raises(ValueError, match="exceedances <= trials"):
        upper_bound(4, 3)


def test_the_tail_of_lognormal_errors_is_found() -> None:
    errors = [math.exp(-6 + 0.5 * z) for z in stream("errors").standard_normal(20_000)]
    tail = fit_tail(errors)
    assert tail is not None
    assert tail.mu == pytest.approx(-6, abs=0.15) and tail.sigma == pytest.approx(0.5, abs=0.06)
    assert tail.quantile(tail.exceeding(0.02)) == pytest.approx(0.02)
    assert tail.exceeding(math.exp(-5)) == pytest.approx(1 - NormalDist().cdf(2), rel=0.2)


def test_most_errors_being_tiny_does_not_stretch_the_tail() -> None:
    """Rounding at 1e-6 in 70 % of the batches, flipped ReLUs at 1e-2 in the others."""
    z = stream("mixed").standard_normal(1000)
    errors = [math.exp((-4.6 if i % 10 < 3 else -13.8) + 0.3 * z[i]) for i in range(1000)]
    proposal = propose(errors, 25_000)
    assert max(errors) <= proposal.tolerance < 0.1 and not proposal.capped
    assert proposal.rate_estimate is not None and proposal.rate_estimate < 1e-6
    assert proposal.exceeding == 0 and proposal.rate_bound == pytest.approx(3 / 1000, rel=0.01)
    assert proposal.false_accusations_bound == pytest.approx(75, rel=0.01)


def test_a_proposal_keeps_its_promise() -> None:
    """Fresh errors of the same kind exceed the tolerance no oftener than was said, within the noise of a fit."""
    fresh = [math.exp(-6 + 0.5 * z) for z in stream("fresh").standard_normal(200_000)]
    for seed in range(20):
        errors = [math.exp(-6 + 0.5 * z) for z in stream("errors", seed).standard_normal(500)]
        proposal = propose(errors, 1000)
        assert sum(error > proposal.tolerance for error in fresh) < 20  # 2 expected at the risk of 0.01 per 1000
        assert not any(error > 2 * proposal.tolerance for error in fresh)


def test_equal_bits_need_no_tolerance() -> None:
    proposal = propose([0.0] * 50, 100)
    assert proposal.tolerance == 0 and proposal.rate_estimate is None and proposal.exceeding == 0


def test_a_few_differing_batches_are_no_tail() -> None:
    proposal = propose([0.0] * 50 + [0.01, 0.02], 100)
    assert proposal.tolerance == 0.04 and proposal.rate_estimate is None


def test_a_handful_of_flips_above_much_rounding_is_no_tail_either() -> None:
    """A fit through both kinds would reach beyond any gradient."""
    rounding = [math.exp(-13 + 0.3 * z) for z in stream("rounding").standard_normal(292)]
    proposal = propose([*rounding, 7e-2, 6e-3, 3e-3, 2e-3, 2e-3, 1e-3, 8e-4, 4e-4], 240)
    assert proposal.tolerance == 0.14 and proposal.rate_estimate is None and not proposal.capped


def test_a_tail_that_wants_too_much_is_capped_and_says_so() -> None:
    errors = [10.0 ** -(1 + 5 * i / 100) / 100 for i in range(100)]
    proposal = propose(errors, 10**9)
    assert proposal.capped and proposal.tolerance == pytest.approx(MOST_MARGIN * max(errors), rel=0.1)
    assert propose([0.9] * 20, 10).tolerance < 0.5


@pytest.mark.parametrize("errors", [[], [-1.0], [math.nan], [math.inf]])
def test_what_is_no_error_is_refused(errors: list[float]) -> None:
    with pytest.raises(ValueError, match="error"):
        propose(errors, 10)


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.0, 0.0), (0.0121, 0.013), (0.012, 0.012), (0.999, 1.0), (1e-7, 1e-7)]
)
def test_rounding_goes_up(value: float, rounded: float) -> None:
    assert round_up(value) == pytest.approx(rounded, rel=1e-12)


def test_a_tail_without_spread_is_a_step() -> None:
    tail = Tail(math.log(0.1), 0.0)
    assert tail.exceeding(0.05) == 1 and tail.exceeding(0.2) == 0 and tail.exceeding(0) == 1
