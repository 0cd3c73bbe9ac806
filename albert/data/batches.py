"""Public batches: 32 bytes say which examples, in which order their segments, and which tokens are hidden."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from albert.data.corpus import Corpus
from btard.protocol.hashing import stream

MASKED_PERCENT = 15
REPLACED = round(0.8 * 2**32)
"""Masked tokens whose 32 random bits are below this become [MASK] ..."""
RANDOM = round(0.9 * 2**32)
"""... and those from there to this become a random token. The others stay unchanged."""

NOT_MASKED = -100
"""The label at positions without a prediction: what cross-entropy ignores."""

Batch = dict[str, Tensor]


def batch(
    corpus: Corpus, seed: bytes, size: int, *, flip_labels: bool = False, start: int = 0, stop: int | None = None
) -> Batch:
    """Return examples `start` .. `stop` - 1 (by default all) of the batch of `size` that a 32-byte seed determines.

    The keys are those of `transformers.AlbertForPreTraining`, all int64 on the CPU, with L = corpus.sequence_length:
    input_ids, attention_mask, token_type_ids [n, L]; labels [n, L], which is -100 where nothing is predicted;
    sentence_order_label [n], which is 1 where segment B comes first.

    Example i depends on the seed and on i alone, so that a slice equals the same slice of the whole batch. It is drawn
    with replacement. Of its tokens 15 % are predicted, at least one; special tokens never are. Of these 80 % become
    [MASK], 10 % a random token, 10 % stay. ALBERT masks up to three neighbours at once, this one masks single tokens.

    `flip_labels` is what a Byzantine peer computes: the same inputs, but label l + 1, modulo the vocabulary, in the
    place of l, and sentence order 1 - l, as in the authors' code.

    Raises ValueError if the seed has another length, or without 0 <= start <= stop <= size.
    """
    stop = size if stop is None else stop
    if len(seed) != 32:
        raise ValueError(f"batch: expected a seed of 32 bytes, got {len(seed)}")
    if not 0 <= start <= stop <= size:
        raise ValueError(f"batch: expected 0 <= start <= stop <= size, got start {start}, stop {stop}, size {size}")
    words = [_words(corpus, "batch", seed, i) for i in range(start, stop)]
    # The high half of the product of a 64-bit number with the count: without a bias that could be seen.
    result = assemble(corpus, [int(row[0]) * len(corpus) >> 64 for row in words], words)
    return flipped(result, corpus.vocab_size) if flip_labels else result


def fixed_batch(corpus: Corpus, indices: Sequence[int]) -> Batch:
    """Return the examples of these indices, as `batch` does: order and masks of each are always the same."""
    return assemble(corpus, indices, [_words(corpus, "fixed", index) for index in indices])


def flipped(batch: Batch, vocab_size: int) -> Batch:
    """Return the batch with wrong labels: l -> (l + 1) mod vocab_size where there is one, sentence order l -> 1 - l."""
    labels = batch["labels"]
    wrong = torch.where(labels == NOT_MASKED, labels, (labels + 1) % vocab_size)
    return {**batch, "labels": wrong, "sentence_order_label": 1 - batch["sentence_order_label"]}


def assemble(corpus: Corpus, indices: Sequence[int], words: Sequence[np.ndarray]) -> Batch:
    """Return the examples of these indices. `words`: for each, [2 + 2 L] uint64, random.

    Word 1 orders the segments, L words rank the positions by which are masked first, L words say what becomes of them.
    """
    count, length = len(indices), corpus.sequence_length
    drawn = np.stack(words) if count else np.zeros((0, 2 + 2 * length), np.uint64)
    special = corpus.special_tokens
    tokens = np.full((count, length), special["pad"], np.int64)
    attention = np.zeros((count, length), np.int64)
    types = np.zeros((count, length), np.int64)
    swapped = (drawn[:, 1] & np.uint64(1)).astype(np.int64)
    for row, index in enumerate(indices):
        one, two = corpus.pair(index)
        if swapped[row]:
            one, two = two, one
        middle, end = len(one) + 2, len(one) + len(two) + 3
        tokens[row, 0] = special["cls"]
        tokens[row, 1 : middle - 1] = one
        tokens[row, middle - 1] = special["sep"]
        tokens[row, middle : end - 1] = two
        tokens[row, end - 1] = special["sep"]
        attention[row, :end] = 1
        types[row, middle:end] = 1
    masked = _chosen(~corpus.is_special[tokens], drawn[:, 2 : 2 + length])
    labels = np.where(masked, tokens, NOT_MASKED)
    fate = drawn[:, 2 + length :]
    low, high = fate & np.uint64(2**32 - 1), fate >> np.uint64(32)
    other = corpus.ordinary[(high * np.uint64(len(corpus.ordinary))) >> np.uint64(32)]
    tokens = np.where(masked & (low < REPLACED), special["mask"], tokens)
    tokens = np.where(masked & (low >= REPLACED) & (low < RANDOM), other, tokens)
    return {
        "input_ids": torch.from_numpy(tokens),
        "attention_mask": torch.from_numpy(attention),
        "token_type_ids": torch.from_numpy(types),
        "labels": torch.from_numpy(labels),
        "sentence_order_label": torch.from_numpy(swapped),
    }


def _chosen(candidates: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return which of the candidates, [n, L] bool, are masked: in each row the 15 % with the lowest of `ranks`."""
    available = candidates.sum(axis=1)
    wanted = np.minimum(available, np.maximum(1, (MASKED_PERCENT * available + 50) // 100))
    ranks = np.where(candidates, ranks, np.uint64(2**64 - 1))
    last = np.take_along_axis(np.sort(ranks, axis=1), np.maximum(wanted - 1, 0)[:, None], axis=1)
    return candidates & (ranks <= last)


def _words(corpus: Corpus, *name: str | int | bytes) -> np.ndarray:
    """Return the random words of one example, [2 + 2 L] uint64: raw, so that no version of numpy changes them."""
    return stream("albert", *name).bit_generator.random_raw(2 + 2 * corpus.sequence_length)
