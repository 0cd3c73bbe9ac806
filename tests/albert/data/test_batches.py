"""Batches: all of one from 32 bytes, slices equal, segment order, masks, flipped labels, evaluation."""

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from albert.data.batches import NOT_MASKED, Batch, batch
from albert.data.corpus import Corpus
from albert.data.evaluation import evaluation_batches, guessing_loss
from tests.albert.data.conftest import LENGTH, SPECIAL, VOCABULARY, MakeCorpus

SEED = bytes(range(32))
# Examples of which every token tells where it stood: tens of the example, A before B.
EXAMPLES = [
    ([10, 11, 12], [13, 14]),
    ([20], [21, 22, 23, 24, 25]),
    ([30, 31, 32, 33, 34, 35, 36], [37, 38, 39, 9, 8, 7]),
]
GOLDEN = "db51a0b0f970222d213a7f8a8ee025249f4df484e6b94b263b01431695c04a38"


def restored(found: Batch) -> torch.Tensor:
    """The inputs before masking."""
    return torch.where(found["labels"] == NOT_MASKED, found["input_ids"], found["labels"])


def fingerprint(found: Batch) -> str:
    return hashlib.sha256(b"".join(found[key].numpy().astype("<i8").tobytes() for key in sorted(found))).hexdigest()


def test_shapes_types_and_padding(synthetic: Path) -> None:
    corpus = Corpus(synthetic)
    found = batch(corpus, SEED, 5)
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "input_ids": (5, 64),
        "attention_mask": (5, 64),
        "token_type_ids": (5, 64),
        "labels": (5, 64),
        "sentence_order_label": (5,),
    }
    assert all(value.dtype == torch.int64 for value in found.values())
    padding = found["attention_mask"] == 0
    assert padding.any() and (found["input_ids"][padding] == 0).all() and (found["labels"][padding] == -100).all()
    assert (found["token_type_ids"][padding] == 0).all()


def test_inputs_are_what_the_tokenizer_makes_of_the_pair(synthetic: Path) -> None:
    corpus = Corpus(synthetic)
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_folder)
    found = batch(corpus, SEED, 40)
    for row, tokens in enumerate(restored(found)):
        ends = (tokens == corpus.special_tokens["sep"]).nonzero().flatten().tolist()
        one, two = (tokenizer.decode(tokens[a + 1 : b]) for a, b in ((0, ends[0]), (ends[0], ends[1])))
        again = tokenizer(one, two, padding="max_length", return_tensors="pt", return_token_type_ids=True)
        assert torch.equal(again["input_ids"][0], tokens)
        assert torch.equal(again["token_type_ids"][0], found["token_type_ids"][row])
        assert torch.equal(again["attention_mask"][0], found["attention_mask"][row])


def test_a_slice_is_the_slice_of_the_whole_batch(synthetic: Path) -> None:
    corpus = Corpus(synthetic)
    whole = batch(corpus, SEED, 12)
    for size, start, stop in ((12, 0, 4), (12, 4, 12), (12, 5, 6), (12, 3, None), (100, 2, 9), (12, 7, 7)):
        part = batch(corpus, SEED, size, start=start, stop=stop)
        assert all(torch.equal(part[key], whole[key][start:stop]) for key in whole)


def test_the_seed_decides_everything_in_every_process(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(EXAMPLES)
    assert fingerprint(batch(corpus, SEED, 64)) == GOLDEN
    assert fingerprint(batch(corpus, bytes(32), 64)) != GOLDEN
    script = (
        "import sys; from albert.data.corpus import Corpus; from tests.albert.data.test_batches import *; "
        "print(fingerprint(batch(Corpus(sys.argv[1]), SEED, 64)))"
    )
    other = subprocess.run([sys.executable, "-c", script, corpus.folder], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == GOLDEN


def test_order_and_its_label(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus(EXAMPLES)
    found = batch(corpus, SEED, 600)
    seen = set()
    for tokens, types, label in zip(
        restored(found).tolist(), found["token_type_ids"].tolist(), found["sentence_order_label"].tolist(), strict=True
    ):
        index = {10: 0, 13: 0, 20: 1, 21: 1, 30: 2, 37: 2}[tokens[1]]
        one, two = EXAMPLES[index][:: -1 if label else 1]
        whole = [2, *one, 3, *two, 3]
        assert tokens == whole + [0] * (LENGTH - len(whole))
        assert types == [0] * (len(one) + 2) + [1] * (len(two) + 1) + [0] * (LENGTH - len(whole))
        seen.add((index, label))
    assert len(seen) == 6
    assert found["sentence_order_label"].double().mean() == pytest.approx(0.5, abs=0.06)


def test_fifteen_percent_are_masked_in_three_ways(synthetic: Path) -> None:
    corpus = Corpus(synthetic)
    found = batch(corpus, SEED, 2_000)
    original, masked = restored(found), found["labels"] != NOT_MASKED
    ordinary = original > 4
    assert not masked[~ordinary].any()
    available = ordinary.sum(dim=1)
    expected = ((15 * available + 50) // 100).clamp(min=1)
    assert torch.equal(masked.sum(dim=1), expected)
    assert masked.sum() / ordinary.sum() == pytest.approx(0.15, abs=0.005)
    now, before = found["input_ids"][masked], original[masked]
    replaced, kept = now == corpus.special_tokens["mask"], now == before
    assert replaced.double().mean() == pytest.approx(0.8, abs=0.02)
    assert kept.double().mean() == pytest.approx(0.1, abs=0.015)
    other = now[~replaced & ~kept]
    assert (other > 4).all() and len(other.unique()) > 0.4 * corpus.vocab_size
    assert torch.equal(found["input_ids"][~masked], original[~masked])


def test_every_position_is_as_likely_to_be_masked(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([(list(range(10, 16)), list(range(16, 22)))])
    masked = (batch(corpus, SEED, 4_000)["labels"] != NOT_MASKED).double().mean(dim=0)
    positions = [*range(1, 7), *range(8, 14)]
    assert masked[positions].tolist() == pytest.approx([2 / 12] * 12, abs=0.025)
    assert masked.sum() == pytest.approx(2)


def test_every_example_is_as_likely(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([([10 + i], [25 + i]) for i in range(10)])
    drawn = restored(batch(corpus, SEED, 10_000))[:, 1:4:2]
    counts = torch.bincount(drawn.min(dim=1).values, minlength=20)[10:]
    assert counts.tolist() == pytest.approx([1_000] * 10, abs=150)


def test_unknown_tokens_are_not_predicted_and_a_single_token_is(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([([1, 1], [1]), ([1], [30])])
    found = batch(corpus, SEED, 50)
    for tokens, labels in zip(restored(found), found["labels"], strict=True):
        assert labels[labels != NOT_MASKED].tolist() == ([30] if 30 in tokens else [])


def test_flipped_labels(synthetic: Path) -> None:
    corpus = Corpus(synthetic)
    honest, flipped = batch(corpus, SEED, 30), batch(corpus, SEED, 30, flip_labels=True)
    masked = honest["labels"] != NOT_MASKED
    assert torch.equal(flipped["labels"][masked], (honest["labels"][masked] + 1) % corpus.vocab_size)
    assert (flipped["labels"][~masked] == NOT_MASKED).all()
    assert torch.equal(flipped["sentence_order_label"], 1 - honest["sentence_order_label"])
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(flipped[key], honest[key])


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 5), (5, None)])
def test_a_slice_outside_of_the_batch_is_refused(make_corpus: MakeCorpus, start: int, stop: int | None) -> None:
    with pytest.raises(ValueError, match=r"expected 0 <= start <= stop <= size, got start .*, size 4"):
        batch(make_corpus(EXAMPLES), SEED, 4, start=start, stop=stop)


def test_a_seed_of_another_length_is_refused(make_corpus: MakeCorpus) -> None:
    with pytest.raises(ValueError, match=r"expected a seed of 32 bytes, got 4"):
        batch(make_corpus(EXAMPLES), b"seed", 4)


def test_evaluation_is_every_example_once_and_always_the_same(synthetic: Path) -> None:
    corpus = Corpus(synthetic, "validation")
    by_50, by_7 = (list(evaluation_batches(corpus, size)) for size in (50, 7))
    assert [len(found["labels"]) for found in by_50] == [50] * (len(corpus) // 50) + [len(corpus) % 50]
    for key in by_50[0]:
        assert torch.equal(torch.cat([found[key] for found in by_50]), torch.cat([found[key] for found in by_7]))
    rows = torch.cat([restored(found) for found in by_7])
    for index in (0, 1, len(corpus) - 1):
        one, two = (part.tolist() for part in corpus.pair(index))
        inner = [token for token in rows[index].tolist() if token not in (0, 2, 3)]
        assert inner in (one + two, two + one)


def test_evaluation_of_some_is_evenly_spaced(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([([10 + i], [20 + i]) for i in range(10)])
    whole = torch.cat([restored(found) for found in evaluation_batches(corpus, 4)])
    some = torch.cat([restored(found) for found in evaluation_batches(corpus, 4, limit=5)])
    assert torch.equal(some, whole[::2])
    assert len(torch.cat([found["labels"] for found in evaluation_batches(corpus, 4, limit=99)])) == 10
    with pytest.raises(ValueError, match="at least 1, got 0 and None"):
        evaluation_batches(corpus, 0)


def test_label_is_within_the_vocabulary(make_corpus: MakeCorpus) -> None:
    labels = batch(make_corpus(EXAMPLES), SEED, 100, flip_labels=True)["labels"]
    assert labels[labels != NOT_MASKED].min() >= 0 and labels.max() < VOCABULARY


def test_guessing_by_frequency_costs_the_entropy_of_words_and_that_of_their_order(make_corpus: MakeCorpus) -> None:
    corpus = make_corpus([([5] * 4, [6] * 4), ([5] * 4, [7] * 4), ([5] * 4, [3] * 2)])
    assert corpus.frequencies()[:3].tolist() == [12, 4, 4] and corpus.frequencies().sum() == 20
    seen = np.array([13, 5, 5])
    words = -(np.array([12, 4, 4]) * np.log(seen / (20 + VOCABULARY - len(SPECIAL)))).sum() / 20
    assert guessing_loss(corpus, corpus) == pytest.approx(words + math.log(2))
