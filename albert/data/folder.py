"""A prepared folder: the examples of each split as Arrow, the tokenizer, and `data.json`, which seals them.

    DATA/data.json              what made it, counts, versions, the digest, size and hash of every other file
    DATA/train.arrow            Arrow stream, columns tokens (A, then B) and first (the length of A)
    DATA/validation.arrow
    DATA/tokenizer/             as `save_pretrained` writes it

`datasets.Dataset.from_file("DATA/train.arrow")` opens the examples, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from albert.data.errors import DataError
from albert.data.pairs import Pair
from btard.harness.progress import Bar, track
from btard.protocol.hashing import digest

FORMAT = 1
RECORD = "data.json"
TOKENIZER = "tokenizer"
SCHEMA = pa.schema(
    [
        pa.field("tokens", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("first", pa.int32(), nullable=False),
    ]
)
ROWS = 4096
"""Number of examples written at a time."""

AGAIN = "delete the folder and prepare it again"


def arrow_file(folder: Path, split: str) -> Path:
    """Return the file with the examples of a split."""
    return folder / f"{split}.arrow"


def write_examples(file: Path, pairs: Sequence[Pair], *, progress: bool = True) -> str:
    """Write the examples of a split and return their digest, hex: equal for equal examples."""
    hashes = _Columns()
    with (
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_stream(sink, SCHEMA) as writer,
        Bar(f"write {file.stem}", len(pairs), unit="examples", show=progress) as bar,
    ):
        for begin in range(0, len(pairs), ROWS):
            block = pairs[begin : begin + ROWS]
            offsets = np.cumsum([0, *(len(pair.tokens) for pair in block)], dtype=np.int32)
            tokens = np.concatenate([pair.tokens for pair in block]).astype(np.int32, copy=False)
            first = np.array([pair.first for pair in block], np.int32)
            hashes.update(tokens, np.diff(offsets), first)
            columns = [pa.ListArray.from_arrays(offsets, pa.array(tokens), type=SCHEMA.field("tokens").type)]
            writer.write_batch(pa.record_batch([*columns, pa.array(first)], schema=SCHEMA))
            bar.advance(len(block))
    return hashes.hexdigest()


def data_digest(sequence_length: int, tokens: Sequence[str], special_ids: Sequence[int], splits: list[str]) -> str:
    """Return, in hex, the digest of all that a batch depends on: examples (their digests), vocabulary and lengths.

    Equal on all machines that prepared the same; neither versions nor names of files take part.
    """
    words = blake3(json.dumps([list(tokens), sorted(special_ids)]).encode()).digest()
    return digest("albert data", FORMAT, sequence_length, words, *splits).hex()


def write_record(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write `data.json` with what `record` says, the hashes of all files that are there, and the seal on all of it."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {RECORD}
    files = {name: {"bytes": (folder / name).stat().st_size, "blake3": _hash(folder / name)} for name in sorted(names)}
    sealed: dict[str, Any] = {"format": FORMAT, **record, "files": files}
    sealed["seal"] = _seal(sealed)
    (folder / RECORD).write_text(json.dumps(sealed, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return sealed


def read_record(folder: Path) -> dict[str, Any]:
    """Return what `data.json` says, after a check that reads neither examples nor tokenizer: sizes and the seal.

    Raises DataError if this is no prepared folder, one of another format, or not as it was written.
    """
    file = folder / RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(_not_prepared(folder)) from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); see to its permissions") from None
    except ValueError:
        raise DataError(f"{file}: expected JSON, found something else; {AGAIN}") from None
    version = record.get("format") if isinstance(record, dict) else None
    if version != FORMAT:
        raise DataError(f"{folder}: expected data of format {FORMAT}, found format {version}; {AGAIN}")
    if record.get("seal") != _seal(record):
        raise DataError(f"{file}: its seal does not fit what it says, so that it was changed or damaged; {AGAIN}")
    for name, wanted in record["files"].items():
        try:
            size = (folder / name).stat().st_size
        except OSError:
            raise DataError(f"{folder / name}: expected this file, found none; {AGAIN}") from None
        if size != wanted["bytes"]:
            raise DataError(f"{folder / name}: expected {wanted['bytes']} bytes, found {size}; {AGAIN}")
    return record


def check(folder: Path, *, progress: bool = True) -> dict[str, Any]:
    """Return what `data.json` says, after reading every file and computing its hash, and the digest from the examples.

    Raises DataError as `read_record` does, and for the first file that is not as it was written.
    """
    record = read_record(folder)
    for name, wanted in track(record["files"].items(), "check", unit="files", show=progress):
        if _hash(folder / name) != wanted["blake3"]:
            raise DataError(f"{folder / name}: its hash is not the one in {RECORD}, so that it was damaged; {AGAIN}")
    splits = []
    for split in record["splits"]:
        hashes = _Columns()
        for rows, first in read_examples(folder, split):
            hashes.update(rows.values.to_numpy(), np.diff(rows.offsets.to_numpy()), first.to_numpy())
        splits.append(hashes.hexdigest())
    words = vocabulary(folder, record["vocab_size"])
    if data_digest(record["sequence_length"], words, record["special_ids"], splits) != record["digest"]:
        raise DataError(f"{folder}: examples and tokenizer do not give the digest in {RECORD}; {AGAIN}")
    return record


def read_examples(folder: Path, split: str) -> list[tuple[pa.ListArray, pa.Int32Array]]:
    """Return the examples of a split, in the blocks in which they were written; they stay on the disk until used.

    Raises DataError if the file is none of this layout.
    """
    file = arrow_file(folder, split)
    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            if stream.schema != SCHEMA:
                raise DataError(f"{file}: expected columns tokens and first, found {stream.schema.names}; {AGAIN}")
            return [(batch.column("tokens"), batch.column("first")) for batch in stream]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: expected an Arrow stream, cannot read it ({type(error).__name__}); {AGAIN}") from None


def vocabulary(folder: Path, size: int) -> list[str]:
    """Return the tokens of a prepared folder's tokenizer, by their ids 0 .. size - 1."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / TOKENIZER / "tokenizer.json"))
    return [backend.id_to_token(index) or "" for index in range(size)]


class _Columns:
    """The digest of examples, independent of the blocks in which they come."""

    def __init__(self) -> None:
        self._hashes = [blake3() for _ in range(3)]

    def update(self, *columns: np.ndarray) -> None:
        for running, column in zip(self._hashes, columns, strict=True):
            running.update(np.ascontiguousarray(column, "<i4").view(np.uint8).data)

    def hexdigest(self) -> str:
        return digest("albert examples", *(running.digest() for running in self._hashes)).hex()


def _not_prepared(folder: Path) -> str:
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        return f"{folder}: expected prepared data, found none but what an interrupted run left; repeat its command"
    source = next((name for name in ("synthetic", "wikitext-2", "wikitext-103") if folder.name == name), "wikitext-103")
    how = f"python -m albert.prepare --source {source} --out {folder}"
    if source == "wikitext-2":
        how += " --train-tokenizer --vocab-size 2000 --sequence-length 64"
    elif source == "synthetic":
        how += " (invented text, no download)"
    if not folder.exists():
        return f"{folder}: expected a folder of prepared data, found none; make it with: {how}"
    return (
        f"{folder}: expected a folder of prepared data, found no {RECORD} in it; correct the path, or make one: {how}"
    )


def _hash(file: Path) -> str:
    running = blake3(max_threads=blake3.AUTO)
    if file.stat().st_size:
        running.update_mmap(file)
    return running.hexdigest()


def _seal(record: dict[str, Any]) -> str:
    unsealed = {key: value for key, value in record.items() if key != "seal"}
    return blake3(json.dumps(unsealed, sort_keys=True).encode()).hexdigest()
