"""Pieces of a Unigram tokenizer, trained so that the same text gives the same pieces on every machine.

The trainer that comes with `tokenizers` sums in the order of a hash table with a random seed, and two runs of it number
their pieces differently; peers must agree on them. Here all sums are over integers: where the trainer weighs every way
to cut a word, this one takes the best (Viterbi training). The pruning is Kudo's (2018, arXiv 1804.10959).
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from btard.harness.progress import Bar

MARK = "▁"
"""The mark for the space before a word."""

COVERAGE = 0.9995
"""The share of all characters that are pieces, besides those of ASCII; the rarest are unknown to the tokenizer."""

MAX_WORDS = 200_000
"""In a larger text, pieces are trained on the most frequent words."""

BLOCK = 50_000
"""Number of words that are cut at a time."""

MAX_PIECE = 16
SEEDS_PER_PIECE = 5
KEPT_PER_ROUND = 0.75

Pieces = list[tuple[str, float]]
"""Pieces with the logarithm of their probability, most probable first, equal ones in the order of their characters."""


def train_pieces(word_counts: Mapping[str, int], size: int, *, progress: bool = True) -> Pieces:
    """Return at most `size` pieces for words with these frequencies; fewer if the text has no more.

    Begins with the substrings that cover most characters, then in turns cuts all words by the pieces there are, counts
    these and drops the quarter whose loss costs least. Single characters stay, but for the rarest (see
    `COVERAGE`). Raises ValueError if `size` is less than `least_pieces`.
    """
    ranked = sorted(word_counts.items(), key=lambda item: (-item[1], item[0]))
    letters = _alphabet(ranked)
    if size < len(letters):
        raise ValueError(f"expected room for {len(letters)} pieces of one character, got {size}")
    words = [(MARK + word, count) for word, count in ranked if letters.issuperset(word)][:MAX_WORDS]
    pieces = _seeds(words, letters, SEEDS_PER_PIECE * size)
    with Bar("train tokenizer", unit="rounds", show=progress) as bar:
        while True:
            counts = _count(pieces, words)
            pieces = _scored(counts, letters, size)
            bar.advance(text=f"{len(pieces):,} pieces")
            if len(pieces) <= size:
                return pieces
            pieces = _pruned(pieces, counts, letters, max(size, int(KEPT_PER_ROUND * len(pieces))))


def least_pieces(word_counts: Mapping[str, int]) -> int:
    """Return how many characters are pieces whatever the size: the least size for these words."""
    return len(_alphabet(sorted(word_counts.items(), key=lambda item: (-item[1], item[0]))))


def _alphabet(ranked: Iterable[tuple[str, int]]) -> set[str]:
    """Return the mark, all characters of ASCII and the most frequent others, which make up `COVERAGE` of the text."""
    counts: Counter[str] = Counter()
    for word, count in ranked:
        for letter in word:
            counts[letter] += count
    room = COVERAGE * sum(counts.values())
    letters = {MARK}
    for letter, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if room > 0 or letter.isascii():
            letters.add(letter)
        room -= count
    return letters


def _seeds(words: list[tuple[str, int]], letters: set[str], limit: int) -> Pieces:
    """Return the alphabet and the `limit` substrings, of those that occur twice, with the most characters in all."""
    counts: Counter[str] = Counter()
    for word, count in words:
        for begin in range(len(word)):
            for end in range(begin + 1, min(begin + MAX_PIECE, len(word)) + 1):
                counts[word[begin:end]] += count
    covered = [(count * len(piece), piece) for piece, count in counts.items() if len(piece) > 1 and count > 1]
    covered.sort(key=lambda item: (-item[0], item[1]))
    chosen = covered[:limit] + [(counts[letter] or 1, letter) for letter in sorted(letters)]
    total = sum(weight for weight, _ in chosen)
    return [(piece, _logarithm(weight, total)) for weight, piece in chosen]


def _count(pieces: Pieces, words: list[tuple[str, int]]) -> dict[str, int]:
    """Return how often each piece is used when every word is cut in the most probable way."""
    # Index 0 stands for what no piece covers; there is nothing of it, since all letters are pieces.
    cutter = Tokenizer(Unigram([("<unk>", 0.0), *pieces], unk_id=0))
    totals = np.zeros(len(pieces) + 1, np.int64)
    for begin in range(0, len(words), BLOCK):
        block = words[begin : begin + BLOCK]
        cut = [found.ids for found in cutter.encode_batch_fast([word for word, _ in block], add_special_tokens=False)]
        used = np.concatenate([np.array(ids, np.int64) for ids in cut])
        np.add.at(totals, used, np.repeat([count for _, count in block], [len(ids) for ids in cut]))
    return {piece: int(total) for (piece, _), total in zip(pieces, totals[1:], strict=True)}


def _scored(counts: dict[str, int], letters: set[str], enough: int) -> Pieces:
    """Return the pieces that were used and all letters, by their new scores.

    If these are fewer than `enough`, others follow that were not used: an unseen word may need them.
    """
    total = sum(counts.values()) or 1
    chosen = {piece: _logarithm(count, total) for piece, count in counts.items() if count}
    unused = [piece for piece in counts if piece not in chosen]
    unused.sort(key=lambda piece: piece not in letters)
    more = max(enough - len(chosen), sum(piece in letters for piece in unused))
    half = _logarithm(1, 2 * total)
    return sorted((chosen | dict.fromkeys(unused[:more], half)).items(), key=lambda item: (-item[1], item[0]))


def _pruned(pieces: Pieces, counts: dict[str, int], letters: set[str], keep: int) -> Pieces:
    """Return the letters and those pieces, `keep` in all, whose loss would make the text least probable."""
    scores = dict(pieces)
    costs = [
        (counts[piece] * (score - _without(piece, scores)), piece) for piece, score in pieces if piece not in letters
    ]
    costs.sort(key=lambda item: (-item[0], item[1]))
    kept = letters.union(piece for _, piece in costs[: keep - len(letters)])
    return [(piece, score) for piece, score in pieces if piece in kept]


def _without(piece: str, scores: dict[str, float]) -> float:
    """Return the score of the best way to cut `piece` into smaller pieces."""
    best = [0.0] + [-math.inf] * len(piece)
    for end in range(1, len(piece) + 1):
        for begin in range(end == len(piece), end):
            score = scores.get(piece[begin:end])
            if score is not None and best[begin] + score > best[end]:
                best[end] = best[begin] + score
    return best[-1]


def _logarithm(count: int, total: int) -> float:
    """Return log(count / total), rounded because mathematical libraries differ in the last digit."""
    return round(math.log(count / total), 6)
