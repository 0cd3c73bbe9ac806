"""The tokenizer: ALBERT's from the hub, one in a folder, or one trained on the text; and text encoded with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from albert.data.errors import DataError
from albert.data.options import DEFAULT
from albert.data.text import Article
from albert.data.unigram import MARK, least_pieces, train_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB = {DEFAULT: "albert/albert-large-v2"}
"""The place of this tokenizer on the hub."""

SPECIAL = {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
"""The special tokens of ALBERT, in the order of their ids from 0 on."""

LEAST_PIECES = 10


def train_tokenizer(
    articles: Iterable[Article], vocab_size: int, sequence_length: int, *, progress: bool = True
) -> PreTrainedTokenizerBase:
    """Return a Unigram tokenizer like ALBERT's, lower-casing, with at most `vocab_size` tokens: the special ones first.

    The same text gives the same tokenizer. Raises DataError if the vocabulary is too small for the text's characters.
    """
    from transformers import PreTrainedTokenizerFast

    if vocab_size < len(SPECIAL) + LEAST_PIECES:
        raise DataError(
            f"--vocab-size: expected at least {len(SPECIAL) + LEAST_PIECES}, of which {len(SPECIAL)} are special "
            f"tokens, got {vocab_size}; the paper's tokenizer has 30000"
        )
    words = count_words(articles)
    least = len(SPECIAL) + least_pieces(words)
    if vocab_size < least:
        raise DataError(
            f"--vocab-size: expected at least {least} for this text, {least - len(SPECIAL)} different characters and "
            f"{len(SPECIAL)} special tokens, got {vocab_size}"
        )
    pieces = train_pieces(words, vocab_size - len(SPECIAL), progress=progress)
    vocabulary = [(token, 0.0) for token in SPECIAL.values()] + pieces
    backend = Tokenizer(Unigram(vocabulary, unk_id=list(SPECIAL).index("unk")))
    backend.normalizer = _normalizer()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always")
    backend.decoder = decoders.Metaspace(replacement=MARK, prepend_scheme="always")
    # The space before it belongs to the token: otherwise it would be a piece of its own.
    spaced = ("unk", "mask")
    backend.add_special_tokens(
        [AddedToken(token, lstrip=name in spaced, normalized=False, special=True) for name, token in SPECIAL.items()]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(SPECIAL[name], backend.token_to_id(SPECIAL[name])) for name in ("cls", "sep")],
    )
    names = {f"{name}_token": token for name, token in SPECIAL.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=sequence_length, **names)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer in folder `name`, or the one that the hub has under this name.

    Raises DataError if there is none, or if it lacks a special token that ALBERT needs.
    """
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    if not folder.is_dir() and name not in HUB:
        raise DataError(
            f"--tokenizer {name}: expected {', '.join(HUB)} or a folder with a tokenizer, found neither; correct it, "
            "or let --train-tokenizer make one"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder) if folder.is_dir() else HUB[name])
        backend = getattr(tokenizer, "backend_tokenizer", None)
    except Exception as error:  # whatever the hub, the network and a damaged file make of it
        place, way_out = (
            ("the folder", "it needs the tokenizer.json and tokenizer_config.json that save_pretrained writes")
            if folder.is_dir()
            else ("the Hugging Face hub", "pass a folder with a tokenizer, or --train-tokenizer")
        )
        raise DataError(f"--tokenizer {name}: cannot be read from {place} ({one_line(error)}); {way_out}") from error
    if not isinstance(backend, Tokenizer):
        raise DataError(
            f"--tokenizer {name}: expected one of the `tokenizers` library, got {type(tokenizer).__name__}; save it "
            "with its tokenizer.json"
        )
    missing = [name for name in SPECIAL if getattr(tokenizer, f"{name}_token_id") is None]
    if missing:
        raise DataError(
            f"--tokenizer {name}: expected the special tokens {', '.join(SPECIAL)}, found no {', '.join(missing)}; "
            "pass another, or --train-tokenizer"
        )
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the ids of the five special tokens that ALBERT needs, by the names in `SPECIAL`."""
    return {name: int(getattr(tokenizer, f"{name}_token_id")) for name in SPECIAL}


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of tokens, or more if their ids have gaps: all ids are below it."""
    return 1 + max(tokenizer.get_vocab().values())


def count_words(articles: Iterable[Article]) -> Counter[str]:
    """Return how often each word occurs, as the tokenizer sees it; special tokens in the text do not count as words."""
    raw: Counter[str] = Counter()
    for article in articles:
        for paragraph in article:
            raw.update(paragraph.split())
    for token in SPECIAL.values():
        raw.pop(token, None)
    normalizer, counts = _normalizer(), Counter[str]()
    for word, count in raw.items():
        for part in normalizer.normalize_str(word).split():
            counts[part] += count
    return counts


class Encoder:
    """Text as tokens, many sentences at a time on several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._unknown = tokenizer.unk_token_id
        self._special = np.zeros(vocabulary_size(tokenizer), bool)
        self._special[tokenizer.all_special_ids] = True

    def __call__(self, sentences: list[str]) -> list[np.ndarray]:
        """Return the tokens of each sentence, [n] int32, without [CLS] and [SEP].

        A special token that stands in the text itself becomes the unknown token: it must not end a segment or ask for
        a prediction.
        """
        found = self._backend.encode_batch_fast(sentences, add_special_tokens=False)
        tokens = np.fromiter(chain.from_iterable(encoding.ids for encoding in found), np.int32)
        tokens[self._special[tokens]] = self._unknown
        return np.split(tokens, np.cumsum([len(encoding) for encoding in found], dtype=np.int64))[:-1]


def one_line(error: BaseException) -> str:
    """Return what an exception of another library says, shortened to one line."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= 160 else said[:157] + "..."


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.Replace("''", '"'),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
