"""Messages as bytes and back, for drivers that have a wire: MessagePack headers, raw payloads and tensors, no pickle.

Bytes from a peer are hostile until decoded: sizes and shapes are checked before anything is made of them, tensors are
views of the input, and whatever is not of the agreed form is `Malformed`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from msgspec import Meta

from btard.protocol import wire
from btard.protocol.identity import SIGNATURE_SIZE
from btard.protocol.limits import MAX_CHAIN, MAX_DIMS, MAX_HEADER, MAX_ITEMS, MAX_SIGNATURE
from btard.protocol.signed import ALIGNMENT, Packet, Relayed, Signed, Vouch
from btard.protocol.wire import Malformed, Message, Number, one_of

DTYPES: tuple[torch.dtype, ...] = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
)
"""The supported dtypes; a dtype's place in this table is its number on the wire. -1 stands for plain bytes."""

RAW = -1
KINDS = frozenset({"part", "aggregate", "lacking"})

_LENGTH = struct.Struct("<H")
_BUNDLED = struct.Struct("<q")
"""Length of a letter in a bundle, `NOTHING` if there is none."""
NOTHING = -1

_Signature = Annotated[bytes, Meta(max_length=MAX_SIGNATURE)]
_Size = Annotated[int, Meta(ge=0, lt=2**31)]


class _Broadcast(Message, frozen=True):
    """A `Signed` as it is sent."""

    sender: Number
    step: Number
    phase: str
    signature: _Signature
    payload: bytes


class _Relayed(Message, frozen=True, tag=1):
    """The header of a `Relayed`; its payload follows as the item's body."""

    sender: Number
    step: Number
    phase: str
    signature: _Signature
    size: _Size
    chain: Annotated[tuple[tuple[Number, _Signature], ...], Meta(max_length=MAX_CHAIN)]


class _Packet(Message, frozen=True, tag=0):
    """The header of a `Packet`."""

    sender: Number
    step: Number
    kind: Annotated[str, one_of(KINDS)]
    signature: _Signature
    part: Number
    code: Annotated[int, Meta(ge=RAW, lt=len(DTYPES))]
    shape: Annotated[tuple[_Size, ...], Meta(max_length=MAX_DIMS)]


_Header: Any = _Packet | _Relayed


def encode_signed(message: Signed) -> bytes:
    """The bytes of a broadcast, at most `message.nbytes`."""
    said = message
    return wire.encode(_Broadcast(said.sender, said.step, said.phase, said.signature, said.payload))


def decode_signed(data: bytes | memoryview, max_bytes: int) -> Signed:
    """The broadcast in `data`, unverified. Malformed if longer than `max_bytes` (checked first) or not one."""
    if len(data) > max_bytes:
        raise Malformed(f"broadcast: {len(data)} bytes, at most {max_bytes} are allowed")
    said = wire.decode(bytes(data), _Broadcast, max_bytes=max_bytes, what="broadcast")
    return Signed(said.sender, said.step, said.phase, said.payload, said.signature)


def decode_vouch(data: bytes | memoryview) -> Vouch:
    """The signature of a `Vouch`, unverified; Malformed for any other length."""
    if len(data) != SIGNATURE_SIZE:
        raise Malformed(f"vouch: {len(data)} bytes, a signature has {SIGNATURE_SIZE}")
    return Vouch(b"", bytes(data))


def bundled(letters: Sequence[Sequence[bytes | memoryview] | None]) -> list[bytes | memoryview]:
    """The letters of a `Bundle` as pieces to be joined, each given as its own pieces; None is nothing."""
    pieces: list[bytes | memoryview] = []
    for letter in letters:
        length = NOTHING if letter is None else sum(len(piece) for piece in letter)
        pieces += [_BUNDLED.pack(length), *(letter or ()), _padding(max(0, length))]
    return pieces


def unbundled(data: memoryview, letters: int) -> list[memoryview | None]:
    """The bytes of each of the `letters` of a bundle; Malformed for any other number, or more bytes."""
    found: list[memoryview | None] = []
    start = 0
    for _ in range(letters):
        length = _BUNDLED.unpack(_take(data, start, _BUNDLED.size)[0])[0]
        start += _BUNDLED.size
        letter, start = (None, start) if length == NOTHING else _take(data, start, length)
        found.append(letter)
    if start != len(data):
        raise Malformed(f"bundle: {len(data)} bytes, its {letters} letters end after {start}")
    return found


def encode_items(items: Sequence[Packet | Relayed]) -> list[bytes | memoryview]:
    """Packets and relayed broadcasts as pieces to be joined, bodies not copied; together at most their `nbytes`.

    An item is the length of its header (2 bytes), the header, its body, each padded to a multiple of 8 bytes.
    Errors: ValueError for an item that has no form on the wire, such as a tensor of another dtype.
    """
    pieces: list[bytes | memoryview] = []
    for item in items:
        header: Message
        body: bytes | memoryview
        if isinstance(item, Relayed):
            said = item.message
            body = said.payload
            header = _Relayed(said.sender, said.step, said.phase, said.signature, len(body), item.chain)
        else:
            code, shape, body = _body(item.body)
            header = _Packet(item.sender, item.step, item.kind, item.signature, item.part, code, shape)
        packed = wire.encode(header)
        if len(packed) > MAX_HEADER:
            raise ValueError(f"an item's header of {len(packed)} bytes cannot be sent, at most {MAX_HEADER} can")
        pieces += [_LENGTH.pack(len(packed)), packed, _padding(2 + len(packed)), body, _padding(len(body))]
    return pieces


def decode_items(data: bytearray | memoryview, max_bytes: int) -> tuple[Packet | Relayed, ...]:
    """The packets and relayed broadcasts in `data`, unverified, in order.

    Tensors are views of `data`, which must be writable memory that nobody changes any more. One hostile item makes all
    of them Malformed. So does more than `max_bytes`, counted as their `nbytes`, as in a driver without a wire.
    """
    view = memoryview(data)
    if len(view) > max_bytes:
        raise Malformed(f"items: {len(view)} bytes, at most {max_bytes} are allowed")
    items: list[Packet | Relayed] = []
    start = 0
    while start < len(view):
        if len(items) == MAX_ITEMS:
            raise Malformed(f"items: more than {MAX_ITEMS}")
        if len(view) - start < _LENGTH.size:
            raise Malformed("items: cut short in a header")
        length = _LENGTH.unpack_from(view, start)[0]
        packed = view[start + 2 : start + 2 + length]
        if length > MAX_HEADER or len(packed) < length:
            raise Malformed(f"items: a header of {length} bytes does not fit")
        header = wire.decode(bytes(packed), _Header, max_bytes=MAX_HEADER, what="item")
        start = aligned(start + 2 + length)
        item, start = _packet(header, view, start) if isinstance(header, _Packet) else _relayed(header, view, start)
        items.append(item)
    if sum(item.nbytes for item in items) > max_bytes:
        raise Malformed(f"items: at most {max_bytes} bytes are allowed")
    return tuple(items)


def _relayed(header: _Relayed, view: memoryview, start: int) -> tuple[Relayed, int]:
    body, end = _take(view, start, header.size)
    return Relayed(Signed(header.sender, header.step, header.phase, bytes(body), header.signature), header.chain), end


def _packet(header: _Packet, view: memoryview, start: int) -> tuple[Packet, int]:
    body: torch.Tensor | bytes
    if header.code == RAW:
        if len(header.shape) != 1:
            raise Malformed("packet: raw bytes have one size")
        taken, end = _take(view, start, header.shape[0])
        body = bytes(taken)
    else:
        dtype, count = DTYPES[header.code], math.prod(header.shape)
        taken, end = _take(view, start, count * dtype.itemsize)
        body = (
            torch.frombuffer(taken, dtype=dtype).view(header.shape) if count else torch.empty(header.shape, dtype=dtype)
        )
    return Packet(header.kind, header.sender, header.step, header.part, body, header.signature), end


def _take(view: memoryview, start: int, size: int) -> tuple[memoryview, int]:
    """`size` bytes from `start` on, and where the next ones begin."""
    end = aligned(start + size)
    if size < 0 or end > len(view):
        raise Malformed(f"item: a body of {size} bytes, {max(0, len(view) - start)} are left")
    return view[start : start + size], end


def _body(body: torch.Tensor | bytes) -> tuple[int, tuple[int, ...], bytes | memoryview]:
    """dtype number, shape and memory of a packet's body."""
    if not isinstance(body, torch.Tensor):
        return RAW, (len(body),), body
    if body.dtype not in DTYPES or body.dim() > MAX_DIMS:
        raise ValueError(f"a tensor of {body.dtype} with {body.dim()} dimensions has no form on the wire")
    flat = body.detach().to("cpu").contiguous().view(-1)
    return DTYPES.index(body.dtype), tuple(body.shape), flat.view(torch.uint8).numpy().data if len(flat) else b""


def aligned(offset: int) -> int:
    """The next multiple of `ALIGNMENT`: from there on, tensors can be used where they lie."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _padding(length: int) -> bytes:
    return bytes(-length % ALIGNMENT)
