"""The baselines: answers by hand, brute force, infeasible settings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from btard.aggregation import (
    AGGREGATORS,
    MIXINGS,
    bucketing,
    bulyan,
    centered_clip,
    clip_around,
    coordinate_median,
    geometric_median,
    krum,
    mean,
    multi_krum,
    nearest_neighbour_mixing,
    rfa,
    trimmed_mean,
)
from btard.aggregation.ranks import network


def sample(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def column(*values):
    return torch.tensor([[float(v)] for v in values])


def test_known_answers():
    assert mean(column(1, 2, 6)).item() == 3
    assert coordinate_median(column(9, 1, 2)).item() == 2
    assert coordinate_median(column(9, 1, 2, 4)).item() == 3
    assert coordinate_median(torch.tensor([[1.0, 9.0], [2.0, 7.0], [3.0, 8.0]])).tolist() == [2, 8]
    assert trimmed_mean(column(-100, 1, 2, 6, 100), 1).item() == 3
    assert trimmed_mean(column(1, 2, 6), 0).item() == 3
    assert geometric_median(column(0, 1, 100)).item() == 1
    # n = 7, f = 2: three nearest others. Row 1 has 1, 1, 4 (sum 6); row 0 has 1, 4, 9; row 2 has 1, 1, 4, the tie.
    assert krum(column(0, 1, 2, 3, 50, 60, 90), 2).item() == 1
    # n = 5, f = 1: two nearest others. Scores 5, 2, 5 for 0 1 2, then 9^2 + 8^2 ... : the best four drop the 100.
    assert multi_krum(column(0, 1, 2, 10, 100), 1).item() == 3.25
    assert multi_krum(column(0, 1, 2, 10, 100), 1, select=1).item() == 1
    # n = 7, f = 1: Krum picks 2, 3, 1, 4, 0 in turn; the three nearest to their median 2 are 1, 2, 3.
    assert bulyan(column(0, 1, 2, 3, 4, 5, 1000), 1).item() == 2


@pytest.mark.parametrize("n", range(1, 25))
def test_ranks_against_sorting(n):
    x = sample(n, 257, seed=n)
    np.testing.assert_allclose(coordinate_median(x), np.median(x.numpy(), axis=0))
    for b in range((n - 1) // 2 + 1):
        expected = np.sort(x.numpy(), axis=0)[b : n - b].mean(axis=0)
        np.testing.assert_allclose(trimmed_mean(x, b), expected, atol=1e-12)


@pytest.mark.parametrize("n", range(1, 12))
def test_networks_on_all_zero_one_inputs(n):
    # The 0-1 principle: a network that is right on all sequences of zeros and ones is right on all sequences.
    rows = np.array(list(itertools.product([0, 1], repeat=n))).T
    truth = np.sort(rows, axis=0)
    for first in range(n):
        for last in range(first, n):
            for ordered in (False, True):
                lines = [row.copy() for row in rows]
                for c in network(n, first, last, ordered):
                    a, b = lines[c.low], lines[c.high]
                    # Poison what is declared unneeded, so that a wrong pruning cannot go unnoticed.
                    lines[c.low] = np.minimum(a, b) if c.keep_low else np.full_like(a, 7)
                    lines[c.high] = np.maximum(a, b) if c.keep_high else np.full_like(a, 7)
                got = np.array(lines[first : last + 1])
                np.testing.assert_array_equal(got if ordered else np.sort(got, axis=0), truth[first : last + 1])


def test_median_network_is_pruned():
    assert len(network(16, 7, 8, False)) < len(network(16, 0, 15, True)) == 63


def test_median_leaves_its_input_alone_and_takes_slices():
    x = sample(16, 300_000, dtype=torch.float32)
    before = x.clone()
    value = coordinate_median(x)
    assert torch.equal(x, before)
    assert torch.equal(coordinate_median(x[:, 5:150_000]), value[5:150_000])
    np.testing.assert_allclose(value[:1000], np.median(x[:, :1000].numpy(), axis=0))


@pytest.mark.parametrize(("n", "d"), [(3, 2), (7, 2), (15, 40), (16, 40), (30, 3)])
@pytest.mark.parametrize("hostile", [False, True])
def test_geometric_median_against_a_general_minimiser(n, d, hostile):
    x = sample(n, d, seed=n)
    if hostile:
        x[: n // 3] *= -1e3
    value = geometric_median(x)

    def loss(v):
        return np.linalg.norm(x.numpy() - v, axis=1).sum()

    found = minimize(loss, value.numpy() + 0.01, method="BFGS", options={"gtol": 1e-10})
    assert loss(value.numpy()) <= found.fun * (1 + 1e-12)
    np.testing.assert_allclose(value, found.x, atol=2e-3)  # as far as BFGS gets
    np.testing.assert_allclose(geometric_median(x.float()), value, atol=1e-5)
    # The unit vectors towards the rows cancel, or the value is a row that outweighs the pull of the others.
    differences = x.numpy() - value.numpy()
    distances = np.linalg.norm(differences, axis=1)
    away = distances > 0
    pull = np.linalg.norm((differences[away] / distances[away, None]).sum(0))
    assert pull <= (~away).sum() + 1e-6


def test_geometric_median_at_a_row_is_that_row():
    x = torch.cat([sample(1, 30), sample(9, 30, seed=1) * 5])
    x[1:] -= x[1:].mean(0) - x[0]
    x[2:5] = x[0]
    assert torch.equal(geometric_median(x), x[0]) or torch.allclose(geometric_median(x), x[0], atol=1e-14)
    assert geometric_median(column(0, 0, 0, 1, 5)).item() == 0
    # Starting at the best row must not mean staying there: in a square with an outlier no row is the solution.
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    torch.testing.assert_close(geometric_median(corners), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(("n", "f"), [(5, 1), (7, 2), (16, 3), (16, 6), (9, 0)])
def test_krum_against_brute_force(reference, n, f):
    for seed in range(5):
        x = sample(n, 33, seed=seed)
        x[:f] *= -1e3
        scores = reference.reference_krum_scores(x, f)
        assert torch.equal(krum(x, f), x[int(scores.argmin())])
        chosen = np.sort(np.argsort(scores, kind="stable")[: n - f])
        torch.testing.assert_close(multi_krum(x, f), x[chosen].mean(0))
        torch.testing.assert_close(multi_krum(x, f, select=3), x[np.argsort(scores, kind="stable")[:3]].mean(0))


@pytest.mark.parametrize(("n", "f"), [(3, 0), (7, 1), (11, 2), (16, 3), (20, 3)])
def test_bulyan_against_brute_force(reference, n, f):
    for seed in range(5):
        x = sample(n, 33, seed=seed)
        x[:f] *= -1e3
        np.testing.assert_allclose(bulyan(x, f), reference.reference_bulyan(x, f), atol=1e-9)


def test_bulyan_in_several_chunks(reference):
    x = sample(7, 400_000, dtype=torch.float32)
    value = bulyan(x, 1)
    np.testing.assert_allclose(value[-50:], bulyan_tail(x, reference), atol=1e-5)


def bulyan_tail(x, reference):
    from btard.aggregation.gram import squared_distances
    from btard.aggregation.krum import bulyan_selection

    selected = np.sort(x[bulyan_selection(squared_distances(x), 1)][:, -50:].double().numpy(), axis=0)
    order = np.argsort(np.abs(selected - np.median(selected, axis=0)), axis=0, kind="stable")[:3]
    return np.take_along_axis(selected, order, axis=0).mean(0)


@pytest.mark.parametrize(
    ("rule", "n", "f", "condition"),
    [
        (trimmed_mean, 4, 2, "n > 2 b"),
        (krum, 6, 2, "n > 2 f \\+ 2"),
        (multi_krum, 4, 1, "n > 2 f \\+ 2"),
        (bulyan, 16, 4, "n >= 4 f \\+ 3"),
    ],
)
def test_infeasible_settings_state_the_condition(rule, n, f, condition):
    with pytest.raises(ValueError, match=rf"{condition} rows: n = {n}, [bf] = {f}"):
        rule(sample(n, 3), f)
    with pytest.raises(ValueError, match="integer >= 0"):
        rule(sample(n, 3), -1)


def test_multi_krum_select_in_range():
    with pytest.raises(ValueError, match="1 to n = 7 rows, got 8"):
        multi_krum(sample(7, 3), 1, select=8)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_registry_is_uniform(name):
    x = sample(16, 50, dtype=torch.float32)
    value = AGGREGATORS[name](x, byzantine=3, tau=1.0)
    assert value.shape == (50,)
    assert value.dtype == x.dtype
    assert torch.equal(value, AGGREGATORS[name](x.clone(), byzantine=3, tau=1.0))
    slices = torch.cat([x, x], dim=1)[:, 50:]
    assert torch.equal(value, AGGREGATORS[name](slices, byzantine=3, tau=1.0))


def test_registry_names():
    expected = "mean coordinate_median trimmed_mean geometric_median rfa krum multi_krum bulyan centered_clip"
    assert list(AGGREGATORS) == [*expected.split(), "clip_around_last"]
    assert list(MIXINGS) == ["nnm", "bucketing"]
    for name in ("centered_clip", "clip_around_last"):
        with pytest.raises(ValueError, match=f"{name} needs a clipping radius: pass tau > 0"):
            AGGREGATORS[name](sample(3, 3), byzantine=0, tau=None)


def test_rfa_by_hand():
    # On a line, rows 0, 0, 6. The mean is 2; weights 1/2, 1/2, 1/4 give 6/5; then 5/6, 5/6, 5/24 again: 2/3; 3/2, 3/2,
    # 3/16 of 6: 18/51.
    x = column(0, 0, 6)
    assert rfa(x, iterations=0).item() == pytest.approx(2)
    assert rfa(x, iterations=1).item() == pytest.approx(6 / 5)
    assert rfa(x, iterations=2).item() == pytest.approx(2 / 3)
    assert rfa(x).item() == pytest.approx(6 / 17)
    # From 0 on, rows 3 and 6 weigh 1/3 and 1/6: 4. Then they are 1 and 2 away: 4 again.
    assert rfa(column(3, 6), start=torch.zeros(1), iterations=1).item() == pytest.approx(4)
    assert rfa(column(3, 6), start=torch.zeros(1)).item() == pytest.approx(4)
    # nu takes the place of smaller distances: all weights 1/100 leave the mean.
    assert rfa(x, nu=100.0).item() == pytest.approx(2)


def test_rfa_goes_where_the_geometric_median_is_and_an_outlier_moves_it_as_far_as_three_steps_let_it():
    x = sample(9, 30, seed=3)
    torch.testing.assert_close(rfa(x, iterations=2000), geometric_median(x), atol=1e-9, rtol=0)
    far = torch.zeros(9, 4, dtype=torch.float64)
    far[4] = 1e6
    assert rfa(far).norm().item() == pytest.approx(2e6 / (8**4 + 1), rel=1e-6)  # ||(1e6, ...)|| = 2e6
    with pytest.raises(ValueError, match="nu > 0"):
        rfa(x, nu=0.0)


def test_nearest_neighbour_mixing_by_hand():
    # n - f = 3 nearest: 0 1 2 for the first three rows; 2 1 10 for the last, whose mean is 13/3.
    assert nearest_neighbour_mixing(column(0, 1, 2, 10), 1).flatten().tolist() == pytest.approx([1, 1, 1, 13 / 3])
    # A tie goes to the lower index: row 1 is as far from row 0 as from row 2.
    assert nearest_neighbour_mixing(column(0, 1, 2), 1).flatten().tolist() == pytest.approx([0.5, 0.5, 1.5])
    assert torch.equal(nearest_neighbour_mixing(column(3, 4, 8), 0), column(5, 5, 5))
    with pytest.raises(ValueError, match="n > 2 f rows: n = 4, f = 2 has no honest majority"):
        nearest_neighbour_mixing(sample(4, 3), 2)


@pytest.mark.parametrize(("n", "f"), [(5, 2), (8, 1), (10, 4)])
def test_nearest_neighbour_mixing_against_brute_force_over_all_subsets(n, f):
    """The n - f nearest rows are those with the smallest sum of distances of all sets of so many."""
    x = sample(n, 7, seed=n)
    mixed = nearest_neighbour_mixing(x, f)
    for i in range(0, n, 4):
        sets = itertools.combinations(range(n), n - f)
        nearest = min(sets, key=lambda chosen, i=i: sum(float((x[i] - x[j]).norm()) for j in chosen))
        torch.testing.assert_close(mixed[i], sum(x[j] for j in nearest) / (n - f))


def test_bucketing_by_hand():
    x = column(1, 2, 4, 8, 16)
    assert bucketing(x, np.array([4, 0, 1, 3, 2]), 2).flatten().tolist() == [8.5, 5.0, 4.0]
    assert torch.equal(bucketing(x, np.arange(5), 1), x)
    assert bucketing(x, np.arange(5), 9).item() == pytest.approx(6.2)
    assert bucketing(torch.full((3, 2), 3e38), np.arange(3), 3)[0, 0] == pytest.approx(3e38)
    for order, size, message in [([0, 0, 1, 2, 3], 2, "permutation"), ([0, 1], 2, "permutation"), (range(5), 0, "row")]:
        with pytest.raises(ValueError, match=message):
            bucketing(x, np.array(order), size)


def test_every_row_is_in_one_bucket():
    x = sample(11, 5)
    drawn = MIXINGS["bucketing"](x, 0, 3, np.random.default_rng(4))
    assert drawn.shape == (4, 5)
    torch.testing.assert_close((3 * drawn[:3].sum(0) + 2 * drawn[3]), x.sum(0))
    assert not torch.equal(drawn, MIXINGS["bucketing"](x, 0, 3, np.random.default_rng(5)))


@pytest.mark.parametrize("mixing", list(MIXINGS))
def test_mixings_name_the_row_that_is_not_finite(mixing):
    x = sample(5, 4)
    x[3, 1] = float("nan")
    with pytest.raises(ValueError, match="row 3 is not finite"):
        MIXINGS[mixing](x, 1, 2, np.random.default_rng(0))


def test_clip_around_by_hand():
    # About 0 with tau 2: 1 and -5 -> 1, -2; half of the sum is -0.5. About 4: differences -3, -9 -> -2, -2.
    assert clip_around(column(1, -5), None, 2.0).item() == -0.5
    assert clip_around(column(1, -5), torch.tensor([4.0]), 2.0).item() == 2.0
    # Two iterations from 0: about -0.5 the differences are 1.5 and -4.5 -> 1.5, -2, so -0.75.
    assert clip_around(column(1, -5), None, 2.0, iterations=2).item() == -0.75
    assert clip_around(torch.tensor([[3.0, 4.0]]), None, 1.0).tolist() == pytest.approx([0.6, 0.8])
    assert clip_around(column(1, 2, 6), torch.tensor([50.0]), float("inf")).item() == pytest.approx(3)


def test_clip_around_ends_where_the_fixed_point_is_and_byzantine_rows_move_it_by_tau_each_at_most():
    x = sample(9, 20, seed=2)
    torch.testing.assert_close(clip_around(x, None, 1.5, iterations=400), centered_clip(x, 1.5).value)
    attacked = x.clone()
    attacked[:3] = 1e12
    moved = clip_around(attacked, x.mean(0), 1.5) - clip_around(x, x.mean(0), 1.5)
    assert moved.norm() <= 2 * 3 * 1.5 / 9 + 1e-9
    for centre, message in [(torch.zeros(3), "centre of shape"), (torch.full((20,), float("inf")), "centre is not")]:
        with pytest.raises(ValueError, match=message):
            clip_around(x, centre, 1.0)
