"""Bad input: one ValueError that names the row and the reason."""

from __future__ import annotations

import math

import pytest
import torch

from btard.aggregation import AGGREGATORS, centered_clip, clip_residual

RULES = list(AGGREGATORS)


def call(name, x):
    return AGGREGATORS[name](x, byzantine=1, tau=1.0)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_non_finite_row_is_named(name, bad, dtype):
    x = torch.randn(9, 5000, dtype=dtype)
    x[4, 4321] = bad
    x[6, 17] = bad
    with pytest.raises(ValueError, match=f"row 4 is not finite: entry {bad} at column 4321, 1 such"):
        call(name, x)


@pytest.mark.parametrize("name", RULES)
def test_opposite_infinities_do_not_cancel(name):
    x = torch.zeros(9, 10)
    x[2, 3], x[5, 3] = math.inf, -math.inf
    with pytest.raises(ValueError, match="row 2"):
        call(name, x)


@pytest.mark.parametrize("name", RULES)
def test_huge_but_finite_rows_are_legal(name):
    x = torch.randn(9, 3000)
    x[1] = 3e38
    assert bool(torch.isfinite(call(name, x)).all())


def test_float64_beyond_its_squares():
    x = torch.ones(5, 4, dtype=torch.float64)
    x[3] = 1e200
    with pytest.raises(ValueError, match="row 3 exceeds 1e\\+150"):
        centered_clip(x, 1.0)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(7), "rank 1"),
        (torch.zeros(7, 2, 2), "rank 3"),
        (torch.zeros(0, 4), "no rows"),
        (torch.zeros(7, 0), "without entries"),
        (torch.zeros(7, 4, dtype=torch.int64), "int64"),
        (torch.zeros(7, 4, dtype=torch.float16), "float16"),
    ],
)
def test_malformed_matrix(name, x, message):
    with pytest.raises(ValueError, match=message):
        call(name, x)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan, -math.inf])
def test_bad_tau(tau):
    with pytest.raises(ValueError, match="tau must lie in"):
        centered_clip(torch.zeros(3, 3), tau)
    with pytest.raises(ValueError, match="tau must lie in"):
        clip_residual(torch.zeros(3, 3), torch.zeros(3), tau)


def test_bad_weights():
    x = torch.randn(3, 4)
    for weights, message in [
        ([1.0, 2.0], "one weight for each of 3 rows"),
        ([1.0, -2.0, 1.0], "weight of row 1"),
        ([1.0, 1.0, math.nan], "weight of row 2"),
        ([0.0, 0.0, 0.0], "all 3 weights are zero"),
    ]:
        with pytest.raises(ValueError, match=message):
            centered_clip(x, 1.0, weights=weights)


def test_bad_claimed_value():
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match="shape \\(4,\\)"):
        clip_residual(x, torch.zeros(5), 1.0)
    x[1, 2] = math.nan
    with pytest.raises(ValueError, match="row 1 is not finite"):
        clip_residual(x, torch.zeros(4), 1.0)


def test_gradient_is_not_tracked():
    x = torch.randn(5, 4, requires_grad=True)
    assert not centered_clip(x, 1.0).value.requires_grad
