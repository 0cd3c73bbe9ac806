"""From text to a prepared folder: read, train or load the tokenizer, tokenise, write."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from albert.data.atomic import complete_folder, replaceable
from albert.data.errors import DataError
from albert.data.folder import (
    RECORD,
    TOKENIZER,
    arrow_file,
    data_digest,
    read_record,
    vocabulary,
    write_examples,
    write_record,
)
from albert.data.options import Options
from albert.data.pairs import SPECIAL_TOKENS, Pair, segment_pairs
from albert.data.sources import open_source
from albert.data.text import Article, sentences
from albert.data.tokenizer import (
    Encoder,
    load_tokenizer,
    special_ids,
    train_tokenizer,
    vocabulary_size,
)
from btard.harness.progress import Bar
from btard.protocol.hashing import stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ARTICLES_AT_A_TIME = 64
VERSIONS = ("numpy", "pyarrow", "tokenizers", "transformers", "datasets")


def prepare(options: Options, out: Path, *, progress: bool = True) -> tuple[dict[str, Any], bool]:
    """Create the folder `out`; return what its `data.json` says, and whether it was created now.

    A complete folder that the same options made stays as it is. Raises DataError, and leaves nothing behind, if
    something else is there, or if the text or the tokenizer cannot be used.
    """
    replaceable(out)  # before any work
    source = open_source(options.source, options.seed, options.documents)
    request = {
        "source": source.description,
        "tokenizer": _tokenizer_request(options),
        "sequence_length": options.sequence_length,
        "seed": options.seed,
    }
    if (record := _made_before(out, request)) is not None:
        return record, False
    with complete_folder(out) as partial:
        text = source.read(progress=progress)
        tokenizer = _tokenizer(options, text["train"], progress)
        tokenizer.save_pretrained(partial / TOKENIZER)
        encoder, splits, digests = Encoder(tokenizer), {}, []
        for split in list(text):
            articles = text.pop(split)
            pairs = _pairs(articles, encoder, options, split, progress)
            digests.append(write_examples(arrow_file(partial, split), pairs, progress=progress))
            splits[split] = {
                "articles": len(articles),
                "examples": len(pairs),
                "tokens": sum(len(pair.tokens) for pair in pairs),
            }
        special = sorted(tokenizer.all_special_ids)
        tokens = vocabulary(partial, vocabulary_size(tokenizer))
        record = {
            "digest": data_digest(options.sequence_length, tokens, special, digests),
            "request": request,
            "sequence_length": options.sequence_length,
            "vocab_size": len(tokens),
            "special_tokens": special_ids(tokenizer),
            "special_ids": special,
            "splits": splits,
            "documents": source.layout,
            "versions": {name: version(name) for name in VERSIONS} | {"python": sys.version.split()[0]},
        }
        return write_record(partial, record), True


def _tokenizer_request(options: Options) -> dict[str, Any]:
    if options.tokenizer is None:
        return {"trained": options.vocab_size}
    file = Path(options.tokenizer).expanduser() / "tokenizer.json"
    if file.is_file():
        return {"name": file.parent.resolve().name, "blake3": blake3(file.read_bytes()).hexdigest()}
    return {"name": options.tokenizer}


def _tokenizer(options: Options, articles: list[Article], progress: bool) -> PreTrainedTokenizerBase:
    if options.tokenizer is None:
        return train_tokenizer(articles, options.vocab_size, options.sequence_length, progress=progress)
    return load_tokenizer(options.tokenizer)


def _made_before(out: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """Return what `data.json` in `out` says if it was made by this request, None if nothing is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / RECORD).exists():
        raise DataError(f"{out}: expected no such folder or an empty one, found other files; choose another --out")
    record = read_record(out)
    made: dict[str, Any] = record["request"]
    for key, wanted in request.items():
        if made.get(key) != wanted:
            raise DataError(
                f"{out}: holds data made with another {key} ({made.get(key)}, not {wanted}); choose another --out, or "
                "delete the folder"
            )
    return record


def _pairs(articles: list[Article], encoder: Encoder, options: Options, split: str, progress: bool) -> list[Pair]:
    pairs: list[Pair] = []
    room = options.sequence_length - SPECIAL_TOKENS
    with Bar(f"tokenise {split}", len(articles), unit="articles", show=progress) as bar:
        for begin in range(0, len(articles), ARTICLES_AT_A_TIME):
            block = articles[begin : begin + ARTICLES_AT_A_TIME]
            cut = [[part for paragraph in article for part in sentences(paragraph)] for article in block]
            tokens = iter(encoder([part for article in cut for part in article]))
            for number, article in enumerate(cut, begin):
                rng = stream("albert", "pairs", options.seed, split, number)
                pairs += segment_pairs([next(tokens) for _ in article], room, rng)
            bar.advance(len(block))
    if not pairs:
        raise DataError(
            f"--source {options.source}: expected documents of at least two sentences for {split}, found none among "
            f"{len(articles)}; pass more text, or say by --documents what separates them"
        )
    return pairs
