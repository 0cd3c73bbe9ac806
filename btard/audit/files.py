"""The files of a recorded run: their names, and how they appear complete or not at all and are read within bounds."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from btard.audit.encoding import check_object
from btard.protocol.ledger import read_object
from btard.protocol.limits import MAX_JSON
from btard.protocol.wire import Malformed

EVIDENCE = "evidence"
PROTOCOL, ROSTER, ATTESTATION = "protocol.json", "roster.json", "attestation.json"
METRICS, LEDGER, TIMINGS = "metrics.jsonl", "ledger.jsonl", "timings.jsonl"
SUMMARY = "summary.json"
"""Marks a run as finished."""


def proof_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.json"


def seal_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.seal.json"


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """`content` and, on a line before it, its digest; the file appears complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, sort_keys=True)
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(f"{blake3(text.encode()).hexdigest()}\n{text}\n", encoding="utf-8")
    put_in_place(temporary, file)


def read_json(file: Path, names: set[str] | None = None) -> dict[str, Any]:
    """What `write_json` wrote, an object with the keys `names` (None: any); Malformed if it is anything else."""
    raw = read_bounded(file, MAX_JSON)
    hashed, _, text = raw.partition(b"\n")
    if not text.endswith(b"\n") or blake3(text[:-1]).hexdigest().encode() != hashed:
        raise Malformed(f"{file.name}: its content does not match its digest")
    return check_object(read_object(text, file.name), file.name, names)


def read_bounded(file: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; Malformed for any other."""
    try:
        if not file.is_file():
            raise Malformed(f"{file.name}: missing")
        if file.stat().st_size > limit:
            raise Malformed(f"{file.name}: {file.stat().st_size} bytes, at most {limit} are read")
        return file.read_bytes()
    except OSError as error:
        raise Malformed(f"{file.name}: {error.strerror}") from None


def put_in_place(temporary: Path, file: Path) -> None:
    """Make the written file `temporary` appear as `file`."""
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.replace(file)


def file_digest(file: Path) -> str:
    """BLAKE3 of the file's content, in hexadecimal digits."""
    hasher = blake3()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            hasher.update(block)
    return hasher.hexdigest()
