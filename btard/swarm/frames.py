"""Bytes on a stream: a header of a few fields, then perhaps a body, whose length is in the header.

The reader says first how much it will take. What is longer is not read.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Protocol

from btard.drivers.letters import Pieces
from btard.protocol import wire
from btard.protocol.wire import Malformed

CHUNK = 2**18
"""Number of bytes that are handed to the stream at once."""

_LENGTH = struct.Struct("<I")


class Source(Protocol):
    """The source of bytes: an `asyncio.StreamReader`, or anything like one."""

    async def read(self, n: int) -> bytes: ...
    async def readexactly(self, n: int) -> bytes: ...


class Sink(Protocol):
    """Where bytes are written to: an `asyncio.StreamWriter`, or what looks like one."""

    def write(self, data: bytes | memoryview) -> None: ...
    async def drain(self) -> None: ...


class Counted:
    """A sink that counts the `bytes` that have been handed to it: no more than it takes reaches the other side."""

    def __init__(self, sink: Sink) -> None:
        self._sink, self.bytes = sink, 0

    def write(self, data: bytes | memoryview) -> None:
        self._sink.write(data)
        self.bytes += len(data)

    async def drain(self) -> None:
        await self._sink.drain()


def size_of(pieces: Pieces) -> int:
    return sum(len(piece) for piece in pieces)


async def send(writer: Sink, header: Any, body: Pieces = ()) -> None:
    """Write `header` (what `wire.pack` takes) and the pieces of `body`. Errors: OSError if the stream has ended."""
    packed = wire.pack(header)
    writer.write(_LENGTH.pack(len(packed)) + packed)
    for piece in body:
        view = memoryview(piece)
        for start in range(0, len(view), CHUNK):
            writer.write(view[start : start + CHUNK])
            await writer.drain()
    await writer.drain()


async def receive(reader: Source, limit: int, what: str) -> list[Any]:
    """The fields of a header of at most `limit` bytes. Errors: Malformed; IncompleteReadError if the stream ends."""
    length = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))[0]
    if length > limit:
        raise Malformed(f"{what}: a header of {length} bytes, at most {limit} are allowed")
    fields = wire.unpack(await reader.readexactly(length), max_bytes=limit, what=what)
    if not isinstance(fields, list):
        raise Malformed(f"{what}: expected a list of fields, got {type(fields).__name__}")
    return fields


async def receive_body(reader: Source, size: int) -> bytearray:
    """`size` bytes, which the caller has found to be few enough; the memory belongs to the caller alone.

    It grows with what arrives: a header that announces much and brings nothing costs nothing. Errors:
    IncompleteReadError if the stream ends before.
    """
    body = bytearray()
    while len(body) < size:
        chunk = await reader.read(min(CHUNK, size - len(body)))
        if not chunk:
            raise asyncio.IncompleteReadError(b"", size - len(body))
        body += chunk
    return body
