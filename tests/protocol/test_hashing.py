import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from btard.protocol.hashing import UNIFORM_SCALE, batch_seed, digest, stream, tensor_digest, uniform

field = st.one_of(st.binary(max_size=8), st.text(max_size=8), st.integers(-5, 300))


@given(st.lists(field, max_size=4), st.lists(field, max_size=4))
def test_different_fields_never_share_a_digest(left: list, right: list) -> None:
    same = left == right and [type(x) for x in left] == [type(x) for x in right]
    assert (digest(*left) == digest(*right)) == same


@pytest.mark.parametrize(
    "other",
    [
        torch.arange(6, dtype=torch.float64),
        torch.arange(6, dtype=torch.float32).reshape(2, 3),
        torch.tensor([0, 1, 2, 3, 4, 6], dtype=torch.float32),
        torch.arange(5, dtype=torch.float32),
        torch.zeros(0),
    ],
)
def test_tensor_digest_covers_dtype_shape_and_bytes(other: torch.Tensor) -> None:
    assert tensor_digest(torch.arange(6, dtype=torch.float32), "part") != tensor_digest(other, "part")


def test_tensor_digest_is_of_the_content_not_of_its_place() -> None:
    x = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    assert tensor_digest(x[:, 1]) == tensor_digest(torch.tensor([1.0, 5.0, 9.0]))
    assert tensor_digest(x[1], "a") != tensor_digest(x[1], "b")


def test_streams_are_named_and_repeatable() -> None:
    assert stream("a", 1).random() == stream("a", 1).random()
    drawn = {stream("a", i).random() for i in range(50)} | {stream("b", i).random() for i in range(50)}
    assert len(drawn) == 100


def test_batch_seed_depends_on_everything_it_should() -> None:
    seeds = {
        batch_seed(run, step, peer, coin)
        for run in ("r", "s")
        for step in (0, 1)
        for peer in (0, 1)
        for coin in (b"x" * 32, b"y" * 32)
    }
    assert len(seeds) == 16 and all(len(seed) == 32 for seed in seeds)
    assert np.unique([seed[0] for seed in seeds]).size > 8  # spread, not counted up


def test_tensors_hash_alike_on_one_thread_and_on_several() -> None:
    x = torch.arange(2**19, dtype=torch.float32)
    assert tensor_digest(x, "part", parallel=True) == tensor_digest(x, "part")


def test_uniform_numbers_are_odd_symmetric_and_of_variance_one() -> None:
    drawn = uniform(200_000, "direction", b"coin", 3)
    assert drawn.dtype == np.int16 and (drawn % 2 == 1).all()
    assert -32767 <= drawn.min() < -32700 and 32700 < drawn.max() <= 32767
    scaled = UNIFORM_SCALE * drawn.astype(np.float64)
    # Four standard errors of the mean, the variance, the kurtosis (9/5) and the correlation of neighbours.
    error = 4 / np.sqrt(len(scaled))
    assert abs(scaled.mean()) < error and abs(scaled.var() - 1) < error
    assert abs((scaled**4).mean() - 9 / 5) < 2 * error
    assert abs((scaled[1:] * scaled[:-1]).mean()) < error


def test_uniform_numbers_are_named_repeatable_and_the_same_on_every_machine() -> None:
    assert (uniform(7, "a", 1) == uniform(7, "a", 1)).all()
    assert (uniform(100, "a", 1)[:7] == uniform(7, "a", 1)).all()
    assert (uniform(100, "a", 1) != uniform(100, "a", 2)).mean() > 0.9
    assert uniform(4, "direction", b"c" * 32, 0).tolist() == [-26661, 10977, -3529, -369]
    assert uniform(0, "a").shape == (0,)
