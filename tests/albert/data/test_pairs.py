"""Segment pairs: neighbours in their order, within the room, and no token lost or twice."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert.data.pairs import Pair, segment_pairs
from btard.protocol.hashing import stream


def numbered(*lengths: int) -> list[np.ndarray]:
    """Sentences of these lengths; their tokens count from 0."""
    bounds = np.cumsum([0, *lengths])
    return [np.arange(begin, end, dtype=np.int32) for begin, end in pairwise(bounds)]


def pairs_of(lengths: list[int], room: int, seed: int = 0) -> list[Pair]:
    return list(segment_pairs(numbered(*lengths), room, stream("test", seed)))


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(2, 60), st.integers(0, 100))
def test_every_token_is_in_one_pair_in_order_but_a_last_sentence_alone(
    lengths: list[int], room: int, seed: int
) -> None:
    pairs = pairs_of(lengths, room, seed)
    told = [token for pair in pairs for token in pair.tokens]
    assert told == list(range(len(told)))
    assert sum(lengths) - len(told) <= room // 2
    for pair in pairs:
        assert pair.tokens.dtype == np.int32
        assert 1 <= pair.first < len(pair.tokens) <= room


def test_segments_are_whole_sentences_that_fit() -> None:
    ends = {3, 7, 10, 14, 17, 21}
    for seed in range(30):
        for pair in pairs_of([3, 4, 3, 4, 3, 4], 10, seed):
            assert {int(pair.tokens[pair.first - 1]) + 1, int(pair.tokens[-1]) + 1} <= ends


def test_most_pairs_are_as_long_as_they_can_be_and_a_tenth_is_shorter() -> None:
    lengths = [len(pair.tokens) for pair in pairs_of([5] * 20_000, 100)]
    # One in ten draws a target from 2 .. 100, of which 5 in 99 give the full 100 again.
    assert np.mean(np.array(lengths) < 100) == pytest.approx(0.1 * 94 / 99, abs=0.03)


def test_where_the_second_segment_begins_varies() -> None:
    firsts = [pair.first for pair in pairs_of([5] * 20_000, 20) if len(pair.tokens) == 20]
    assert sorted(set(firsts)) == [5, 10, 15]
    assert np.bincount(firsts)[[5, 10, 15]] == pytest.approx(len(firsts) / 3, rel=0.1)


def test_a_long_sentence_is_cut_into_equal_pieces() -> None:
    (pair,) = pairs_of([20], 20, seed=1)
    assert pair.tokens.tolist() == list(range(20)) and pair.first == 10
    assert sum(len(pair.tokens) for pair in pairs_of([100_000], 20)) >= 100_000 - 10


@pytest.mark.parametrize("lengths", [[], [0], [4], [0, 4, 0]])
def test_less_than_two_sentences_give_no_pair(lengths: list[int]) -> None:
    assert pairs_of(lengths, 20) == []
