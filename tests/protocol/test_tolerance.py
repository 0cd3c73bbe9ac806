"""When two gradients are too far apart for one computation: distances, margins, and what a few entries show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btard.protocol.config import ProtocolConfig
from btard.protocol.tolerance import difference, reach, shown_too_far, tolerated_deviation, too_far


def test_distances_known_by_hand() -> None:
    x = torch.tensor([3.0, 4.0])
    assert difference(x, x) == difference(x * 0, x * 0)
    assert (difference(x, x).relative, difference(x, x).cosine) == (0, 0)
    assert difference(x, 2 * x).relative == pytest.approx(0.5) and difference(x, 2 * x).cosine == 0
    assert difference(x, -x).relative == pytest.approx(2) and difference(x, -x).cosine == pytest.approx(2)
    turned = difference(x, torch.tensor([-4.0, 3.0]))
    assert turned.relative == pytest.approx(2**0.5) and turned.cosine == pytest.approx(1)
    assert difference(x, 0 * x).relative == 1
    huge = torch.full((1000,), 3e38)
    assert difference(huge, -huge).relative == pytest.approx(2)
    near = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-6])
    assert difference(*near).cosine == pytest.approx(0.5e-12, rel=1e-6)  # 1 - cos in float32, even in float64, loses it


def test_what_some_machines_take_for_zero_is_no_difference() -> None:
    config = ProtocolConfig(5, validation="tolerant", cosine_tol=1e-3)
    for size, far in ((1e-42, False), (1e-38, False), (1e-36, True)):
        g = torch.full((60,), size)
        for a, b in ((g, 0 * g), (0 * g, g), (g, -g)):
            assert too_far(config, a, b, margin=1) == too_far(config, a, b, margin=2) == far
            assert shown_too_far(config, a[:20], b[:20], float(b.double().norm()), margin=1) == far


vectors = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3).map(torch.tensor)


@settings(max_examples=300, deadline=None)
@given(vectors, vectors, vectors)
def test_both_distances_obey_the_triangle_inequality(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    ab, bc, ac = difference(a, b), difference(b, c), difference(a, c)
    assert ac.relative <= ab.relative + bc.relative + 1e-9
    if all(float(x.norm()) > 1e-3 for x in (a, b, c)):
        assert ac.cosine**0.5 <= ab.cosine**0.5 + bc.cosine**0.5 + 1e-6
    assert difference(b, a) == ab


corners = st.lists(st.integers(-3, 3), min_size=3, max_size=3).map(lambda x: torch.tensor(x, dtype=torch.float32))


@settings(max_examples=1000, deadline=None)
@given(corners, corners, corners, st.integers(0, 40), st.integers(0, 3), st.sampled_from([None, 1e-2]))
def test_some_entries_convict_nobody_honest_and_what_convinces_a_validator_convinces_each_judge(
    r: torch.Tensor, s: torch.Tensor, u: torch.Tensor, far: int, shown: int, cosine_tol: float | None
) -> None:
    """`r` and `near` are honest, as far apart as the tolerance lets them be; the committed `g` is anywhere."""
    config = ProtocolConfig(5, validation="tolerant", gradient_tol=0.3, cosine_tol=cosine_tol)

    def wrong(committed: torch.Tensor, own: torch.Tensor, margin: float) -> bool:
        return shown_too_far(config, committed[:shown], own[:shown], float(own.double().norm()), margin=margin)

    near = r + s * (0.3 * float(r.norm()) / max(1.0, float(s.norm())))
    g = r + u * (far / 10 * float(r.norm()) / max(1.0, float(u.norm())))
    for mine, other in ((r, near), (near, r)):
        if not too_far(config, mine, other, margin=1 + 1e-6):
            assert not wrong(mine, other, 1 + 1e-4)
            assert not wrong(g, mine, 2 + 1e-4) or wrong(g, other, 1 - 1e-4)


def test_more_entries_never_make_less_of_it() -> None:
    config = ProtocolConfig(5, validation="tolerant", gradient_tol=0.1)
    r = torch.ones(4)
    assert reach(0.1, margin=2) == pytest.approx(0.81**-1 - 1)
    found = [shown_too_far(config, (r + 0.3)[:i], r[:i], 2.0, margin=2) for i in range(5)]
    assert found == [False, False, False, True, True]  # 0.3 of sqrt(i) / 2 of the whole
    assert not shown_too_far(config, r[:0], r[:0], 0.0, margin=1)
    assert shown_too_far(config, r[:1], 0 * r[:1], 0.0, margin=1)


def test_the_margins_are_those_of_distances() -> None:
    config = ProtocolConfig(5, validation="tolerant", gradient_tol=0.1, cosine_tol=1e-3)
    x, right = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    chord = 1e-3**0.5 * 2**0.5
    assert not too_far(config, x, x + 0.99 * chord * right, margin=1)
    assert too_far(config, x, x + 1.01 * chord * right, margin=1)
    assert not too_far(config, x, x + 1.98 * chord * right, margin=2)
    assert too_far(config, x, x + 2.05 * chord * right, margin=2)
    assert not too_far(config, x, 0.81 * x, margin=2) and too_far(config, x, 0.79 * x, margin=2)
    assert tolerated_deviation(0.1) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "value"), [("validation", "loose"), ("gradient_tol", 0.0), ("gradient_tol", 0.5), ("cosine_tol", 0.25)]
)
def test_settings_that_could_convict_nobody_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        ProtocolConfig(5, **{name: value})
