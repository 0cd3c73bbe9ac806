"""A relay of libp2p's circuits (version 2): forwards what two peers that cannot connect say to each other.

The daemon brings a relay along which cuts a connection after 128 KiB, whatever limits it is started with: too little
for a gradient. This one takes its place under the same protocol, and cuts nothing. What passes is encrypted between the
two. A stranger may ask, too: that both are connected to the relay is enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from hivemind.p2p import P2P, P2PDaemonError, PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo

from btard.protocol.wire import Malformed
from btard.swarm.cancel import cancel
from btard.swarm.deadlines import ANSWER

HOP, STOP = "/libp2p/circuit/relay/0.2.0/hop", "/libp2p/circuit/relay/0.2.0/stop"
"""What peers ask a relay for, and what the relay asks the other peer for."""
RESERVE, CONNECT, STATUS = 0, 1, 2
STOP_CONNECT, STOP_STATUS = 0, 1
OK, TOO_MANY, FAILED, NO_RESERVATION, MALFORMED = 100, 201, 203, 204, 400
TYPE, PEER, RESERVATION, HOP_STATUS, STOP_STATUS_FIELD = 1, 2, 3, 5, 4
"""Fields of the two messages."""
LIFE = 3600
"""Seconds for which a peer is told that it is reachable here; it asks again before that."""
MESSAGE = 4096
"""Largest size of a message in bytes: a peer id and its addresses."""
CHUNK = 2**16
CIRCUITS = 256
"""Connections that one peer may have opened at once."""

Fields = Mapping[int, int | bytes]


class Relay:
    """Serves as a relay from `open` on. `circuits`: peer -> connections that it has opened here."""

    def __init__(self, p2p: P2P) -> None:
        self.p2p = p2p
        self.circuits: Counter[PeerID] = Counter()

    async def open(self) -> None:
        """Replace the daemon's relay."""
        await self.p2p.add_binary_stream_handler(HOP, self._serve)

    async def _serve(self, info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(info.peer_id, reader, writer)
        except Malformed:
            with contextlib.suppress(OSError):
                await _send(writer, [(TYPE, STATUS), (HOP_STATUS, MALFORMED)])
        except (P2PDaemonError, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError):
            pass  # it will ask again
        finally:
            writer.close()

    async def _answer(self, asks: PeerID, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await asyncio.wait_for(_receive(reader), ANSWER)
        if request.get(TYPE, RESERVE) == RESERVE:
            reservation = _encode([(1, int(time.time()) + LIFE)])
            await _send(writer, [(TYPE, STATUS), (RESERVATION, reservation), (HOP_STATUS, OK)])
            return
        if request[TYPE] != CONNECT:
            raise Malformed("relay: expected to be asked for something")
        to = PeerID(_bytes(_decode(_bytes(request.get(PEER))).get(1)))
        if self.circuits[asks] >= CIRCUITS:
            await _send(writer, [(TYPE, STATUS), (HOP_STATUS, TOO_MANY)])
            return
        if to not in {peer.peer_id for peer in await self.p2p.list_peers()}:
            await _send(writer, [(TYPE, STATUS), (HOP_STATUS, NO_RESERVATION)])
            return
        self.circuits[asks] += 1
        try:
            await self._connect(asks, to, reader, writer)
        finally:
            self.circuits[asks] -= 1
            self.circuits += Counter()  # forgets those without any: strangers make up names as they like

    async def _connect(
        self, asks: PeerID, to: PeerID, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            answers, other = await asyncio.wait_for(self._reach(asks, to), ANSWER)
        except (Malformed, P2PDaemonError, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            await _send(writer, [(TYPE, STATUS), (HOP_STATUS, FAILED)])
            return
        try:
            await _send(writer, [(TYPE, STATUS), (HOP_STATUS, OK)])
            ways = [asyncio.ensure_future(_carry(reader, other)), asyncio.ensure_future(_carry(answers, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel(*ways)
        finally:
            other.close()

    async def _reach(self, asks: PeerID, to: PeerID) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A stream to `to`, which has accepted what `asks` says."""
        _, reader, writer = await self.p2p.call_binary_stream_handler(to, STOP)
        try:
            await _send(writer, [(TYPE, STOP_CONNECT), (PEER, _encode([(1, asks.to_bytes())]))])
            answer = await _receive(reader)
            if (answer.get(TYPE), answer.get(STOP_STATUS_FIELD)) != (STOP_STATUS, OK):
                raise Malformed("relay: the other one does not take it")
        except BaseException:
            writer.close()
            raise
        return reader, writer


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes until one of the two ends."""
    while chunk := await reader.read(CHUNK):
        writer.write(chunk)
        await writer.drain()


async def _send(writer: asyncio.StreamWriter, fields: Sequence[tuple[int, int | bytes]]) -> None:
    message = _encode(fields)
    writer.write(_varint(len(message)) + message)
    await writer.drain()


async def _receive(reader: asyncio.StreamReader) -> Fields:
    """The next message. Errors: Malformed."""
    size = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
        if shift > 14:
            raise Malformed("relay: a length of more than three bytes")
    if size > MESSAGE:
        raise Malformed(f"relay: a message of {size} bytes, at most {MESSAGE} are allowed")
    return _decode(await reader.readexactly(size))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


def _encode(fields: Sequence[tuple[int, int | bytes]]) -> bytes:
    """A protobuf message with these fields: numbers and bytes."""
    return b"".join(
        _varint(number << 3) + _varint(value)
        if isinstance(value, int)
        else _varint(number << 3 | 2) + _varint(len(value)) + value
        for number, value in fields
    )


def _decode(message: bytes) -> Fields:
    """The fields of a protobuf message that has numbers and bytes; of several with one number, the last.

    Errors: Malformed.
    """
    fields: dict[int, int | bytes] = {}
    at = 0

    def number() -> int:
        nonlocal at
        found = 0
        for shift in range(0, 70, 7):
            if at >= len(message):
                break
            byte = message[at]
            at += 1
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return found
        raise Malformed("relay: a number that does not end")

    while at < len(message):
        key = number()
        value = number()
        if key & 7 == 0:
            fields[key >> 3] = value
        elif key & 7 == 2 and at + value <= len(message):
            fields[key >> 3] = message[at : at + value]
            at += value
        else:
            raise Malformed("relay: a field of another kind, or longer than the message")
    return fields


def _bytes(value: int | bytes | None) -> bytes:
    if not isinstance(value, bytes):
        raise Malformed("relay: expected bytes")
    return value
