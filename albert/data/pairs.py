"""Segment pairs: two neighbouring stretches of one article, in their order, as sentence-order prediction needs them."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

SPECIAL_TOKENS = 3
"""[CLS] A [SEP] B [SEP]"""

SHORT_SHARE = 0.1
"""The share of pairs that are shorter than they could be, so that the model sees all lengths (as in BERT)."""


class Pair(NamedTuple):
    """Segments A and B, where B follows A in the article."""

    tokens: np.ndarray
    """[n] int32: A, then B"""
    first: int
    """The length of A, in 1 .. n - 1"""


def segment_pairs(sentences: Iterable[np.ndarray], room: int, rng: np.random.Generator) -> Iterator[Pair]:
    """Yield the pairs of one article, each of at most `room` tokens; `room` is at least 2.

    `sentences`: their tokens, [n] int32, in order. Pairs take whole sentences as long as they fit and begin where the
    one before ended, so that no token is in two of them and none is left out but a last sentence on its own. A sentence
    longer than half of `room` counts as several. Where A ends and B begins is drawn among the pair's sentences.
    """
    waiting: list[np.ndarray] = []
    length, target = 0, _target(room, rng)
    for unit in _units(sentences, room // 2):
        if len(waiting) >= 2 and length + len(unit) > target:
            yield _pair(waiting, rng)
            waiting, length, target = [], 0, _target(room, rng)
        waiting.append(unit)
        length += len(unit)
    if len(waiting) >= 2:
        yield _pair(waiting, rng)


def _target(room: int, rng: np.random.Generator) -> int:
    """Draw the length up to which a pair takes more sentences than the two that always fit."""
    # Only `random`, whose numbers are the same in every version of numpy.
    return 2 + int(rng.random() * (room - 1)) if rng.random() < SHORT_SHARE else room


def _units(sentences: Iterable[np.ndarray], limit: int) -> Iterator[np.ndarray]:
    for sentence in sentences:
        if len(sentence) > limit:
            yield from np.array_split(sentence, -(-len(sentence) // limit))
        elif len(sentence):
            yield sentence


def _pair(units: list[np.ndarray], rng: np.random.Generator) -> Pair:
    split = 1 + int(rng.random() * (len(units) - 1))
    return Pair(np.concatenate(units), sum(map(len, units[:split])))
