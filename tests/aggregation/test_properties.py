"""Properties that hold for all inputs: permutation, translation, scaling."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btard.aggregation import AGGREGATORS, centered_clip, clip_residual, residual_and_floor

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def matrices(draw, min_rows=1):
    """Gaussian rows of mixed scales, some of them repeated."""
    n = draw(st.integers(min_rows, 18))
    d = draw(st.sampled_from([1, 2, 3, 17, 130]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = generator.standard_normal((n, d)) * 10.0 ** generator.uniform(-1, draw(st.sampled_from([0, 3])), (n, 1))
    if draw(st.booleans()):
        x[generator.integers(n)] = x[generator.integers(n)]
    return torch.from_numpy(x)


def close(a, b, x, tolerance=1e-7):
    scale = float(x.abs().median()) + 1e-9
    return float((a - b).abs().max()) <= tolerance * max(scale, float(b.abs().max()))


@SETTINGS
@given(matrices(), st.sampled_from([0.01, 0.3, 2.0, 50.0, float("inf")]))
def test_centered_clip_solves_its_equation(x, tau):
    result = centered_clip(x, tau)
    assert result.converged
    assert clip_residual(x, result.value, tau) < 1e-6
    single = centered_clip(x.float(), tau)
    assert single.converged
    # What rounding to float32 must leave: entries of 1e3 and tau 0.01 alone make it 1e-3.
    residual, floor = residual_and_floor(x.float(), single.value, tau)
    assert residual <= max(1e-6, floor)


@SETTINGS
@given(matrices(), st.sampled_from([0.3, 2.0, 50.0, float("inf")]), st.sampled_from([1e-3, 8.0, 1e5]))
def test_centered_clip_commutes_with_symmetries(x, tau, s):
    if x.shape[1] == 1 and len(x) % 2 == 0:
        return  # on a line with an even number of rows the fixed point need not be unique
    value = centered_clip(x, tau, tol=1e-12).value
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert close(centered_clip(x[order], tau, tol=1e-12).value, value, x)
    shift = torch.linspace(-3, 5, x.shape[1], dtype=x.dtype)
    assert close(centered_clip(x + shift, tau, tol=1e-12).value - shift, value, x)
    assert close(centered_clip(s * x, s * tau, tol=1e-12).value / s, value, x)


RULES = ["mean", "coordinate_median", "trimmed_mean", "geometric_median", "rfa", "krum", "multi_krum", "bulyan"]


@pytest.mark.parametrize("name", RULES)
@SETTINGS
@given(x=matrices(min_rows=7), s=st.sampled_from([1e-3, 8.0, 1e5]))
def test_baselines_commute_with_symmetries(name, x, s):
    if name in ("geometric_median", "rfa") and x.shape[1] == 1:
        return  # not unique on a line, and on one a step of RFA comes as near to a row as it likes
    if name in ("krum", "multi_krum", "bulyan") and (len(torch.unique(x, dim=0)) < len(x) or x.shape[1] == 1):
        return  # ties are broken by index
    rule = AGGREGATORS[name]
    value = rule(x, byzantine=1)
    assert close(rule(s * x, byzantine=1) / s, value, x)
    shift = torch.linspace(-3, 5, x.shape[1], dtype=x.dtype)
    assert close(rule(x + shift, byzantine=1) - shift, value, x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    if name in ("krum", "multi_krum", "bulyan"):
        return  # the last picks of Bulyan, and a pair of mutual neighbours in Krum, are ties in every sample
    assert close(rule(x[order], byzantine=1), value, x)


@pytest.mark.parametrize("name", ["krum", "multi_krum", "bulyan"])
def test_selection_does_not_depend_on_order_without_ties(name):
    x = torch.randn(19, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    value = AGGREGATORS[name](x, byzantine=4)
    for seed in range(5):
        order = torch.randperm(19, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(AGGREGATORS[name](x[order], byzantine=4), value)
