"""The trained tokenizer: the same for the same text, ALBERT's special tokens and template, and what is refused."""

import math
import random
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from albert.data import tokenizer as module
from albert.data.errors import DataError
from albert.data.synthetic import synthetic_lines
from albert.data.text import articles
from albert.data.tokenizer import Encoder, count_words, load_tokenizer, special_ids, train_tokenizer, vocabulary_size
from albert.data.unigram import least_pieces, train_pieces

ARTICLES = list(articles(synthetic_lines(0, "validation")))


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerBase:
    return train_tokenizer(ARTICLES, 400, 64, progress=False)


def test_pieces_known_by_hand() -> None:
    # Both words whole, 8 and 4 of 12 uses; the letters stay, with half a use each.
    assert train_pieces({"ab": 8, "abab": 4}, 5, progress=False) == [
        ("▁ab", round(math.log(8 / 12), 6)),
        ("▁abab", round(math.log(4 / 12), 6)),
        ("a", round(math.log(1 / 24), 6)),
        ("b", round(math.log(1 / 24), 6)),
        ("▁", round(math.log(1 / 24), 6)),
    ]
    # With room for one piece more than letters: "▁ab" is in every use of both.
    assert [piece for piece, _ in train_pieces({"ab": 8, "abab": 4}, 4, progress=False)] == ["▁ab", "a", "b", "▁"]


def test_training_depends_on_counts_alone() -> None:
    words = list(count_words(ARTICLES).items())
    first = train_pieces(dict(words), 300, progress=False)
    random.Random(1).shuffle(words)
    assert train_pieces(dict(words), 300, progress=False) == first
    assert len(first) == 300 and len(dict(first)) == 300
    assert first == sorted(first, key=lambda piece: (-piece[1], piece[0]))


def test_rare_letters_are_no_pieces_and_frequent_ones_always_are() -> None:
    words = {"abö": 10_000, "xyz": 100, "7": 1, "þ": 1}
    assert least_pieces(words) == 8
    assert set(dict(train_pieces(words, 8, progress=False))) == set("▁aböxyz7")
    with pytest.raises(ValueError, match="expected room for 8 pieces of one character, got 7"):
        train_pieces(words, 7, progress=False)


@pytest.mark.parametrize("script", ["一", "Ա", "ア"], ids=["Chinese", "Armenian", "Katakana"])
def test_a_vocabulary_is_never_larger_than_asked_for(script: str) -> None:
    text = [[chr(ord(script) + number % 30) * 2] for number in range(300)]
    with pytest.raises(DataError, match=r"--vocab-size: expected at least (\d+) for this text.*, got 20") as error:
        train_tokenizer(text, 20, 64, progress=False)
    least = int(str(error.value).split("at least ")[1].split()[0])
    assert least < 5 + 1 + 31
    for size in (least, least + 4):
        assert vocabulary_size(train_tokenizer(text, size, 64, progress=False)) <= size
    with pytest.raises(DataError, match=f"expected at least {least} for this text"):
        train_tokenizer(text, least - 1, 64, progress=False)


def test_a_small_text_gives_fewer_pieces_than_asked_for() -> None:
    assert len(train_pieces({"ab": 2}, 1000, progress=False)) == 6  # ▁ a b ▁a ab ▁ab


def test_words_as_the_tokenizer_sees_them() -> None:
    text = [["Élan ÉLAN <unk> [MASK] a\u00a0b ``x''"]]
    assert count_words(text) == Counter({"elan": 2, "a": 1, "b": 1, '"x"': 1})


def test_special_tokens_come_first_and_the_template_is_that_of_albert(trained: PreTrainedTokenizerBase) -> None:
    assert trained.convert_ids_to_tokens(list(range(5))) == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    assert special_ids(trained) == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert vocabulary_size(trained) == len(trained) == 400
    one, two = (trained.encode(text, add_special_tokens=False) for text in ("The baker", "baked bread ."))
    pair = trained("The baker", "baked bread .", return_token_type_ids=True)
    assert pair["input_ids"] == [2, *one, 3, *two, 3]
    assert pair["token_type_ids"] == [0] * (len(one) + 2) + [1] * (len(two) + 1)
    assert trained("The baker")["input_ids"] == [2, *one, 3]


def test_lower_case_without_accents_and_back(trained: PreTrainedTokenizerBase) -> None:
    tokens = trained.encode("The  BÁKER baked bread", add_special_tokens=False)
    assert trained.decode(tokens) == "the baker baked bread"


def test_saved_and_loaded_it_is_the_same(trained: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    trained.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()
    assert special_ids(loaded) == special_ids(trained)
    assert AutoTokenizer.from_pretrained(tmp_path).model_max_length == 64


def test_special_tokens_in_a_text_become_unknown(trained: PreTrainedTokenizerBase) -> None:
    rows = Encoder(trained)(["the <unk> baker", "the [MASK] baker", "the[SEP]baker", "", "the baker"])
    the, baker = (trained.encode(word, add_special_tokens=False) for word in ("the", "baker"))
    assert [row.tolist() for row in rows] == [[*the, 1, *baker]] * 3 + [[], [*the, *baker]]
    assert Encoder(trained)([]) == []


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match=r"^--vocab-size: expected at least 15, of which 5 .* got 14;"):
        train_tokenizer(ARTICLES, 14, 64, progress=False)


def test_an_unknown_tokenizer_is_refused() -> None:
    with pytest.raises(DataError, match=r"^--tokenizer nowhere: expected albert-large-v2 or a folder .* found neither"):
        load_tokenizer("nowhere")


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read from the folder \(.*\); it needs the tokenizer.json") as error:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_mask_is_refused(trained: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    names = {f"{name}_token": token for name, token in module.SPECIAL.items() if name not in ("mask", "pad")}
    PreTrainedTokenizerFast(tokenizer_object=trained.backend_tokenizer, **names).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"expected the special tokens pad, .*, found no pad, mask; pass another"):
        load_tokenizer(str(tmp_path))


def test_a_hub_out_of_reach_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(name: str) -> None:
        assert name == "albert/albert-large-v2"
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(DataError, match=r"hub \(We couldn't connect to the hub\); pass a folder .* --train-tokenizer$"):
        load_tokenizer("albert-large-v2")
