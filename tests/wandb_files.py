"""Reads what wandb has written without a network: a .wandb file, which is a log in LevelDB's format."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, FILE_HEADER, CHUNK_HEADER = 2**15, 7, 7
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(file: Path) -> list[Any]:
    """Return the `wandb_internal.Record`s of a .wandb file whose run has finished.

    wandb's service, a process of its own, may still have the file open: it is told to end first.
    """
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()
    return [Record.FromString(data) for data in _logged(file.read_bytes())]


def _logged(data: bytes) -> Iterator[bytes]:
    """The records of the log; each is one chunk or several, each with checksum, length and kind before it."""
    place, parts = FILE_HEADER, b""
    while place + CHUNK_HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < CHUNK_HEADER:  # too short for a chunk
            place += left
            continue
        checksum = int.from_bytes(data[place : place + 4], "little")
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        end = place + CHUNK_HEADER + length
        chunk = data[place + 6 : end]
        assert zlib.crc32(chunk) == checksum, f"a damaged chunk at byte {place} of {len(data)}: kind {kind}, {length} B"
        parts = (b"" if kind in (WHOLE, FIRST) else parts) + chunk[1:]
        if kind in (WHOLE, LAST):
            yield parts
        place = end
