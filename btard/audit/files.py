"""The files of a run: their names, and how those of the evidence are written with a digest and read within bounds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from btard.audit.encoding import check_object
from btard.files import write_file
from btard.protocol.ledger import read_object
from btard.protocol.limits import MAX_JSON
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


def proof_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.json"


def seal_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.seal.json"


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


def file_digest(file: Path) -> str:
    """BLAKE3 of the file's content, in hexadecimal digits."""
    hasher = blake3()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            hasher.update(block)
    return hasher.hexdigest()
