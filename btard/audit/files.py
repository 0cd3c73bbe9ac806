"""The files of a run: their names, and how those of the evidence are written with a digest and read within bounds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from blake3 import blake3

from btard.audit.encoding import check_object
from btard.files import write_file
from btard.protocol.ledger import read_object
from btard.protocol.limits import MAX_JSON, MAX_VALUES
from btard.protocol.wire import Malformed

CONFIG, RUN = "config.yaml", "run.json"
"""The settings of a run: of a program's, and of one that a function of the library began."""
VERSION = "protocol_version"
"""The version of the protocol under which a run was begun."""
METRICS, LEDGER, TIMINGS = "metrics.jsonl", "ledger.jsonl", "timings.jsonl"
STATUS = "status.json"
"""What a coordinator sees at present."""
SUMMARY = "summary.json"
"""Marks a run as finished."""
CHECKPOINTS, EVIDENCE = "checkpoints", "evidence"
"""Folders."""
PROTOCOL, ROSTER, ATTESTATION = "protocol.json", "roster.json", "attestation.json"
"""What an audit begins with, beside the proofs."""
MODEL = "model.json"
"""Where a model's named tensors lie in the run's vectors."""
FINAL = "final.safetensors"
"""The parameters after the last step, in the folder of a run that keeps no checkpoints of the whole training."""
KEPT_FILE = "kept.safetensors"
"""What peers do not train, as it was before the first step, in the folder of a run that keeps checkpoints."""


MAX_FILE = 2**35
"""The largest number of bytes that are hashed of a file, a few at a time: the state of a large model has that many."""


def proof_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.json"


def seal_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.seal.json"


def numbered(folder: Path, before: str, after: str = "") -> list[tuple[int, Path]]:
    """(number, path) of what is in `folder` with a number between these words as its name, ascending by number."""
    named = [(path.name.removeprefix(before).removesuffix(after), path) for path in folder.glob(f"{before}*{after}")]
    return sorted((int(number), path) for number, path in named if number.isdecimal())


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """`content` and, on a line before it, its digest; the file appears complete or not at all."""
    text = json.dumps(content, sort_keys=True)
    write_file(file, f"{blake3(text.encode()).hexdigest()}\n{text}\n")


def read_json(file: Path, names: set[str] | None = None) -> dict[str, Any]:
    """What `write_json` wrote, an object with the keys `names` (None: any); Malformed if it is anything else."""
    raw = read_bounded(file, MAX_JSON)
    hashed, _, text = raw.partition(b"\n")
    if not text.endswith(b"\n") or blake3(text[:-1]).hexdigest().encode() != hashed:
        raise Malformed(f"{file.name}: its content does not match its digest")
    if (values := values_in(text)) > MAX_VALUES:
        raise Malformed(f"{file.name}: {values} values, at most {MAX_VALUES} are read")
    return check_object(read_object(text, file.name), file.name, names)


def values_in(raw: bytes) -> int:
    """How many JSON values `raw` may hold beside the outermost one."""
    return sum(map(raw.count, (b",", b"[", b"{")))


def read_bounded(file: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; Malformed for any other."""
    return b"".join(_blocks(file, limit))


def file_digest(file: Path, limit: int, size: int = 32) -> str:
    """BLAKE3 of the content that `read_bounded` returns, `size` bytes in hexadecimal digits; holds little of it."""
    hasher = blake3()
    for block in _blocks(file, limit):
        hasher.update(block)
    return hasher.hexdigest(size)


def open_file(file: Path) -> BufferedReader:
    """A regular file, to be read without waiting: one that has nothing yet ends there. Errors: Malformed; OSError."""
    if not file.is_file():
        raise Malformed(f"{file.name}: missing")
    return open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb")


def _blocks(file: Path, limit: int) -> Iterator[bytes]:
    """The content of a regular file of at most `limit` bytes, in pieces; Malformed for any other.

    A file may hold more than its size says, as those of /proc do: no more is read of it.
    """
    try:
        with open_file(file) as stream:
            size, read = os.fstat(stream.fileno()).st_size, 0
            while size <= limit and (block := stream.read(min(2**20, limit - read + 1))):
                yield block
                read += len(block)
                size = max(size, read)
    except OSError as error:
        raise Malformed(f"{file.name}: {error.strerror}") from None
    if size > limit:
        raise Malformed(f"{file.name}: too long, at most {limit} bytes are read")
