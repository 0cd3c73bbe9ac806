"""CenteredClip against answers known by hand and against the textbook iteration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from btard.aggregation import centered_clip, centered_clips, clip_residual, residual_and_floor, scratch

FLOOR = 3e-7  # a float32 residual that rounding explains, for rows without a common offset


def sample(n=16, d=301, seed=0, dtype=torch.float32):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def attacked(scale, n=16, d=301, bad=7, dtype=torch.float32):
    x = sample(n, d, dtype=dtype)
    x[:bad] *= -scale
    return x


# Answers by hand. One dimension, rows 0 0 0 10 at tau 1: 3 (0 - v) + 1 = 0.
@pytest.mark.parametrize(
    ("rows", "tau", "expected"),
    [
        ([[0.0], [0.0], [0.0], [10.0]], 1.0, [1 / 3]),
        ([[0.0], [0.0], [0.0], [10.0]], 6.0, [2.0]),  # v = 2: the last is clipped to 6, 3 * 2 = 6
        ([[0.0], [0.0], [0.0], [10.0]], 100.0, [2.5]),
        ([[0.0], [0.0], [0.0], [10.0]], math.inf, [2.5]),
        ([[3.0, 4.0]], 0.1, [3.0, 4.0]),
        ([[0.0, 0.0], [2.0, 2.0]], 1.0, [1.0, 1.0]),
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], 0.25, [0.0, 0.0]),
        ([[5.0, 5.0]] * 4, 1e-3, [5.0, 5.0]),
        ([[0.1, 0.3, 0.7]] * 5, 10.0, [0.1, 0.3, 0.7]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_known_answers(rows, tau, expected, dtype):
    result = centered_clip(torch.tensor(rows, dtype=dtype), tau)
    assert result.value.dtype == dtype
    assert result.converged
    np.testing.assert_allclose(result.value.numpy(), expected, atol=1e-6, rtol=0)


def test_equal_rows_come_back_bit_for_bit():
    row = sample(1, 1000, seed=3)
    for n in (1, 2, 5, 7):
        result = centered_clip(row.expand(n, -1), 10.0)
        assert torch.equal(result.value, row[0])
        assert result.residual == 0


def test_rows_apart_by_less_than_the_gram_matrix_sees():
    """A few units in the last place: the distances of the first Gram matrix are all lost in its rounding."""
    for seed in range(30):
        size = np.random.default_rng(seed).random()
        rows = torch.tensor([[size * (1 + 1e-6 * (i + 1))] * 4 for i in range(3)], dtype=torch.float32)
        residual, floor = residual_and_floor(rows, centered_clip(rows, 1e10).value, 1e10)
        assert residual <= max(1e-5, floor), f"seed {seed}"


@pytest.mark.parametrize("tau", [0.3, 1.0, 10.0, 24.0, 1e3])
@pytest.mark.parametrize("kind", ["honest", "scales", "attack", "duplicates", "many rows", "one column"])
def test_agrees_with_textbook_iteration(reference, kind, tau):
    x = {
        "honest": lambda: sample(dtype=torch.float64),
        "scales": lambda: sample(dtype=torch.float64) * torch.logspace(-1, 1, 16, dtype=torch.float64)[:, None],
        "attack": lambda: attacked(1000.0, dtype=torch.float64),
        "duplicates": lambda: sample(8, dtype=torch.float64).repeat(2, 1),
        "many rows": lambda: sample(40, 3, dtype=torch.float64) * 10,
        "one column": lambda: sample(15, 1, dtype=torch.float64) * 10,
    }[kind]()
    start = None
    if tau < 1 and x.shape[1] > 100:
        start = centered_clip(x, tau).value.numpy() + 1e-3  # the iteration is slow: from near by it still must arrive
    expected = reference.reference_centered_clip(x, tau, start=start, iterations=20_000)
    unit = min(tau, float(np.median(np.linalg.norm(x.numpy() - expected, axis=1))))
    if reference.reference_residual(x, expected, tau) > 1e-9:
        pytest.fail("the textbook iteration has not converged: the test compares nothing")
    exact = centered_clip(x, tau)
    assert exact.residual < 1e-12
    assert np.linalg.norm(exact.value.numpy() - expected) < 1e-5 * max(unit, 1e-2)
    single = centered_clip(x.float(), tau)
    assert single.residual < 1e-6
    assert reference.reference_residual(x.float(), single.value, tau) < 1e-6


@pytest.mark.parametrize("tau", [1e-9, 0.1, 1.0, 10.0, 17.0, math.inf])
@pytest.mark.parametrize("scale", [-1.0, 1e3, 1e6])
def test_float32_floor_under_attack(reference, tau, scale):
    x = attacked(scale, d=30_011)
    result = centered_clip(x, tau)
    assert result.residual < FLOOR
    truth = reference.reference_residual(x, result.value, tau)
    assert truth < FLOOR
    assert abs(result.residual - truth) < 1e-7
    assert clip_residual(x, result.value, tau) == pytest.approx(truth, rel=1e-6)
    np.testing.assert_allclose(result.distances, np.linalg.norm(x.double() - result.value.double(), axis=1), rtol=1e-6)
    assert torch.equal(result.clipped, result.distances > tau)


def test_common_offset_far_above_the_distances():
    x = sample(d=2000) + 1e4
    x[:7] = -x[:7]
    for tau in (0.1, 10.0):
        result = centered_clip(x, tau)
        # Entries near 1e4 are 1e-3 apart: no float32 value can do much better than 1e-3 / sqrt(12) / distance 1.
        assert result.residual < 5e-4
        assert result.residual < result_floor(x, result, tau)
        assert result.converged
    exact = centered_clip(x.double(), 10.0, tol=1e-10)
    assert exact.residual < 1e-10
    assert torch.linalg.vector_norm(exact.value - centered_clip(x, 10.0).value) / 2000**0.5 < 1e-3


def result_floor(x, result, tau):
    return residual_and_floor(x, result.value, tau)[1]


@pytest.mark.parametrize("tau", [1e-12, 1e-6, 1e-3])
def test_tiny_tau_at_a_row(tau):
    # One row in the middle of a simplex: the geometric median is that row, and a robust fixed point lies within tau.
    x = torch.cat([torch.zeros(1, 4), torch.eye(4), -torch.eye(4)]).double() + 0.25
    x[1] *= 3
    result = centered_clip(x, tau)
    assert result.converged
    assert float(result.distances[0]) <= tau
    # The value can be no nearer to its place inside the ball than its rounding, which tau of 1e-12 makes visible.
    assert result.residual < max(1e-6, 1e-15 / tau)


@pytest.mark.parametrize("n", [2, 3, 4, 8])
def test_collinear_rows(n):
    x = torch.arange(n, dtype=torch.float64)[:, None] * torch.ones(1, 50, dtype=torch.float64) / 50**0.5
    for tau in (1e-6, 0.1, 0.5, 2.0):
        result = centered_clip(x, tau)
        assert clip_residual(x, result.value, tau) < 1e-9
        # Symmetric, so the middle; an even number of rows farther than tau from it leave all of its gap to choose from.
        gap = 0.5 if n % 2 == 0 and tau < 0.5 else 0.0
        assert abs(float(result.value.sum()) / 50**0.5 - (n - 1) / 2) <= gap + 1e-6


def test_weights_equal_repetition_and_zero_weight_is_absence():
    x = attacked(100.0, n=6, bad=2, dtype=torch.float64)
    counts = [1, 3, 0, 2, 1, 1]
    repeated = torch.repeat_interleave(x, torch.tensor(counts), dim=0)
    for tau in (0.5, 10.0, math.inf):
        result = centered_clip(x, tau, weights=counts)
        expected = centered_clip(repeated, tau).value
        torch.testing.assert_close(result.value, expected, rtol=1e-8, atol=1e-8)
        assert clip_residual(x, result.value, tau, weights=counts) < 1e-9
    assert len(result.distances) == 6
    assert torch.equal(
        centered_clip(x, 1.0, weights=torch.tensor(counts)).value, centered_clip(x, 1.0, weights=np.array(counts)).value
    )


def test_bounded_influence():
    honest = sample(15, 500, dtype=torch.float64)
    tau = 5.0
    with_zero = centered_clip(torch.cat([honest, honest[:1]]), tau).value
    moved = [
        float(torch.linalg.vector_norm(centered_clip(torch.cat([honest, s * honest[:1]]), tau).value - with_zero))
        for s in (10.0, 1e3, 1e6, 1e9)
    ]
    assert max(moved) < 2 * tau
    assert moved[-1] == pytest.approx(moved[-2], rel=1e-3)  # beyond some size, size does not matter


@pytest.mark.parametrize("magnitude", [1e-30, 1e-18, 1e18, 1e30])
def test_extreme_but_finite_float32(magnitude):
    x = sample(9, 3001)
    expected = centered_clip(x, 10.0).value
    result = centered_clip(x * magnitude, 10.0 * magnitude)
    assert result.residual < FLOOR
    torch.testing.assert_close(result.value / magnitude, expected, rtol=1e-5, atol=1e-5)
    hostile = x.clone()
    hostile[:4] *= magnitude
    assert centered_clip(hostile, 10.0).residual < FLOOR


def test_column_slice_needs_no_copy_and_gives_the_same_bits():
    wide = attacked(1000.0, n=15, d=12_345)
    for columns in (slice(3, 10_000), slice(11, 12), slice(7, 4103)):
        view, copy = wide[:, columns], wide[:, columns].contiguous()
        for tau in (0.1, 1.0, math.inf):
            assert torch.equal(centered_clip(view, tau).value, centered_clip(copy, tau).value)
    turned = wide.t().contiguous().t()
    assert torch.equal(centered_clip(turned, 1.0).value, centered_clip(wide, 1.0).value)


def test_deterministic_and_leaves_its_input_alone():
    x = attacked(1000.0, d=46_764)
    before = x.clone()
    first = centered_clip(x, 1.0)
    assert torch.equal(x, before)
    for _ in range(3):
        again = centered_clip(x.clone(), 1.0)
        assert torch.equal(again.value, first.value)
        assert (again.residual, again.iterations) == (first.residual, first.iterations)
        assert torch.equal(again.distances, first.distances)


def shapes_of_rows(n: int, d: int) -> list[torch.Tensor]:
    """Rows that the solver treats in different ways, and in different numbers of iterations."""
    x = sample(n, d)
    line = sample(n, 1) * torch.ones(d)
    equal, most, far, apart = x.clone(), x.clone(), x.clone(), x.clone()
    equal[:] = x[0]
    most[: n // 2 + 1] = x[0]
    far[0], far[-1] = 1e9 * x[0], 1e30 * x[-1]
    apart *= torch.logspace(-3, 3, n)[:, None]
    return [x, attacked(1000.0, n=n, bad=n // 3, d=d), line, equal, most, far, apart, 1e-20 * x, 1e4 + x, 0 * x, x]


@pytest.mark.parametrize("tau", [1e-30, 0.1, 3.0, 1e6, math.inf])
@pytest.mark.parametrize("n", [2, 5, 15])
def test_several_at_once_give_the_same_as_each_alone(n, tau):
    matrices = [x for d in (3, 67, 2500) for x in shapes_of_rows(n, d)] + shapes_of_rows(7, 3)
    alone = [centered_clip(x, tau) for x in matrices]
    assert n == 2 or tau > 3 or len({result.iterations for result in alone}) > 3
    for one, other in zip(alone, centered_clips(matrices, tau), strict=True):
        assert torch.equal(one.value.view(torch.int32), other.value.view(torch.int32))
        assert torch.equal(one.distances, other.distances) and torch.equal(one.clipped, other.clipped)
        assert (one.residual, one.iterations, one.converged) == (other.residual, other.iterations, other.converged)


def test_several_at_once_refuse_what_is_not_finite():
    assert centered_clips([], 1.0) == []
    bad = sample(5, 67)
    bad[3, 7] = math.nan
    with pytest.raises(ValueError, match="row 3 is not finite"):
        centered_clips([sample(5, 67), bad, sample(5, 67)], 1.0)


def test_several_chunks_of_columns(reference):
    x = attacked(1000.0, n=5, bad=2, d=1_000_003)  # two chunks and a block that is not full
    result = centered_clip(x, 3.0)
    assert reference.reference_residual(x, result.value, 3.0) < FLOOR
    assert abs(result.residual - clip_residual(x, result.value, 3.0)) < 1e-7


def test_stops_at_the_floor_when_tol_is_below_it():
    x = attacked(1000.0, d=5000)
    result = centered_clip(x, 1.0, tol=1e-15)
    assert result.converged
    assert result.residual < FLOOR
    assert not centered_clip(x, 1.0, max_iterations=0).converged


def test_residual_grows_with_the_distance_from_the_solution():
    x = attacked(1000.0, d=5000)
    value = centered_clip(x, 10.0).value
    direction = sample(1, 5000, seed=9)[0]
    residuals = [clip_residual(x, value + s * direction, 10.0) for s in (0.0, 1e-4, 1e-2, 1.0)]
    assert residuals == sorted(residuals)
    assert residuals[1] > 10 * residuals[0]
    assert residuals[3] > 0.1
    far, floor = residual_and_floor(x, value + 1e20 * direction, 10.0)
    assert far > 0.9
    assert floor < 1e-5  # being far off is no excuse
    assert clip_residual(x, value * math.nan, 10.0) == math.inf


def test_zero_gradients_of_the_majority_do_not_break_the_unit():
    x = sample(7, 100)
    x[:4] = 0
    result = centered_clip(x, 1e-3)
    assert result.residual < FLOOR
    assert float(result.distances[0]) < 1e-3


def test_low_precision_matmul_setting_is_harmless():
    x = attacked(1000.0, d=30_000)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert clip_residual(x, centered_clip(x, 1.0).value, 1.0) < 1e-6
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_agrees_with_cpu(dtype):
    x = attacked(1000.0, d=1_000_003, dtype=dtype)
    for tau in (0.1, 10.0, math.inf):
        there, here = centered_clip(x.cuda(), tau), centered_clip(x, tau)
        assert there.value.is_cuda
        assert there.residual < FLOOR
        torch.testing.assert_close(there.value.cpu(), here.value, rtol=1e-4, atol=1e-4)
        assert torch.equal(there.value, centered_clip(x.cuda(), tau).value)


def test_it_works_in_inference_mode_and_outside_of_it_afterwards() -> None:
    scratch._kept.__dict__.clear()
    x = sample()
    with torch.inference_mode():
        inside = centered_clip(x, 1.0)
    assert torch.equal(inside.value, centered_clip(x, 1.0).value)


@pytest.mark.parametrize(("honest", "copies", "d"), [(3, 2, 8), (4, 3, 8), (4, 3, 100)])
def test_rows_that_nearly_coincide_are_solved_at_any_radius(honest: int, copies: int, d: int) -> None:
    """Liars copy an honest row but for a rounding: there a value that is farther off can have the smaller residual."""
    rng = np.random.default_rng(1)
    for attempt in range(60):
        rows = rng.standard_normal(d) + 0.05 * rng.standard_normal((honest, d))
        near = rows[[0] * copies if attempt % 2 else range(copies)]
        near = near * (1 + 1e-7 * (1 + attempt % 5) * rng.standard_normal(near.shape))
        x = torch.from_numpy(np.concatenate([rows, near]).astype(np.float32))
        assert centered_clip(x, 1e-9).converged


@pytest.mark.parametrize(
    ("tau", "rows"),
    [
        (
            1e-9,
            [
                "1.1240480p-13 1.38f02ep-13", "1.1240700p-13 1.38f090p-13", "1.12404c0p-13 1.38f034p-13",
                "1.1240480p-13 1.38f02ep-13", "-1.3261c40p-16 -1.32c490p-13", "1.7a5d380p-15 -1.10fff4p-14",
                "-1.d392a60p-14 -1.5aff58p-15",
            ],
        ),
        (
            3.8671261883796355e-11,
            ["1.f52de2p-15", "1.f52e20p-15", "1.f52de4p-15", "1.1ac008p-15", "-1.368c70p-13", "-1.2b2f20p-12"],
        ),
    ],
)  # fmt: skip
def test_a_distance_below_the_error_of_the_gram_matrix_is_measured(tau: float, rows: list[str]) -> None:
    """Not taken for zero: the residual that is said is never below the one that a judge finds, beyond rounding."""
    x = torch.tensor([list(map(float.fromhex, row.split())) for row in rows])
    clip = centered_clip(x, tau)
    residual, floor = residual_and_floor(x, clip.value, tau)
    assert residual <= max(1e-5, floor) and residual <= clip.residual + 1e-7
