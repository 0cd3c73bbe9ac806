"""The passes over the memory against one line of float64 each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from btard.aggregation import centered_clip
from btard.aggregation.gram import combination, combine, gram


def sample(n, d, seed=0):
    """Rows with a common part, as a column slice of a wider matrix."""
    x = torch.randn(n, d + 9, generator=torch.Generator().manual_seed(seed))
    return (x + 0.5 * x[0])[:, 5 : 5 + d]


# Numbers of rows below and above where they are padded for the kernels; columns of less than a block, of a block and
# a rest, of blocks alone, and of several chunks with a rest.
@pytest.mark.parametrize("n", [1, 2, 12, 13, 15, 16, 19, 33])
@pytest.mark.parametrize("d", [3, 2048, 5000, 150_001])
def test_gram_of_any_number_of_rows(n, d):
    x = sample(n, d)
    centre = torch.linspace(-1, 1, d)
    for c, wide in [(None, False), (centre, False), (None, True), (centre, True)]:
        y = x.double().numpy() - (0 if c is None else c.double().numpy())
        size = np.linalg.norm(y, axis=1)
        error = np.abs(gram(x, c, wide=wide) - y @ y.T) / np.outer(size, size)
        assert error.max() < (1e-6 if c is not None or not wide else 1e-13)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("d", [3, 8192, 150_001])
@pytest.mark.parametrize("about", ["origin", "base"])
@pytest.mark.parametrize("wide", [False, True])
def test_both_ways_to_measure_agree(d, about, wide, threads):
    x = sample(15, d)
    base = x.mean(0) if about == "base" else None
    p = np.linspace(1, 2, 15)
    p /= p.sum()
    influence = np.linspace(3, 1, 15)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        squares = gram(x, base, wide=wide).diagonal()
        quick = combine(x, p, influence, base, squares, wide=wide)
        careful = combine(x, p, influence, base, None, wide=wide)
        alone = combination(x, p, base, wide=wide)
    finally:
        torch.set_num_threads(before)
    truth = x.double().numpy() - quick.value.double().numpy()
    np.testing.assert_allclose(quick.value, (p @ x.double().numpy()), atol=2e-6)
    assert torch.equal(quick.value, careful.value)
    np.testing.assert_allclose(alone, quick.value, atol=2e-6)
    for measured in (quick, careful):
        np.testing.assert_allclose(measured.squares, (truth**2).sum(1), rtol=3e-6)
        assert measured.clipped_sum == pytest.approx(np.linalg.norm(influence @ truth), rel=1e-5)
        assert measured.size == pytest.approx(float(torch.linalg.vector_norm(quick.value.double())), rel=1e-6)
    assert quick.gram is None
    np.testing.assert_allclose(careful.gram, truth @ truth.T, atol=1e-6 * (truth**2).sum(1).max())


def places(rows):
    """The same rows in other places: packed, aligned, within wider matrices."""
    n, d = rows.shape
    for start, width in [(0, d), (0, -(-d // 16) * 16), (1, d + 40), (16, -(-d // 16) * 16 + 112), (7 * d, 16 * d + 3)]:
        place = torch.empty(n, width)[:, start : start + d]
        yield place.copy_(rows)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [1, 4, 5, 8, 15, 16])
@pytest.mark.parametrize("d", [3, 7, 9, 33, 67, 2048, 3001, 150_001])
def test_the_same_rows_give_the_same_bits_wherever_they_lie(n, d, threads):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(d))
    p, influence = np.linspace(1, 2, n) / np.linspace(1, 2, n).sum(), np.linspace(3, 1, n)
    found = set()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for x in places(rows):
            g = gram(x)
            quick, careful = (combine(x, p, influence, None, squares) for squares in (g.diagonal(), None))
            numbers = [g, combination(x, p, None), centered_clip(x, 0.1).value]
            numbers += [a for c in (quick, careful) for a in (c.value, c.squares, [c.clipped_sum, c.size])]
            found.add(b"".join(np.asarray(a).tobytes() for a in numbers))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1
