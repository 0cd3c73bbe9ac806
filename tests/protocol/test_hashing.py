import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from btard.protocol.hashing import batch_seed, digest, stream, tensor_digest

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
