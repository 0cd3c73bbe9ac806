"""The baselines: answers by hand, brute force, infeasible settings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from btard.aggregation import (
    AGGREGATORS,
    bulyan,
    coordinate_median,
    geometric_median,
    krum,
    mean,
    multi_krum,
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
    expected = "mean coordinate_median trimmed_mean geometric_median krum multi_krum bulyan centered_clip"
    assert list(AGGREGATORS) == expected.split()
    with pytest.raises(ValueError, match="tau"):
        AGGREGATORS["centered_clip"](sample(3, 3), byzantine=0, tau=None)
