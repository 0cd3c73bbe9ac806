"""Messages as bytes and back, for drivers that have a wire: msgpack headers, raw payloads and tensors, no pickle.

Bytes from a peer are hostile until decoded: sizes and shapes are checked before anything is made of them, tensors are
views of the input, and whatever is not of the agreed form is `Malformed`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import torch

from btard.protocol import wire
from btard.protocol.hashing import DIGEST_SIZE
from btard.protocol.limits import MAX_DIMS, MAX_HEADER, MAX_ITEMS, MAX_SIGNATURE
from btard.protocol.messages import Packet, Relayed, Signed
from btard.protocol.wire import Malformed

DTYPES: tuple[torch.dtype, ...] = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
)
"""The tensors there are; a dtype's place in this table is its number on the wire. -1 stands for plain bytes."""

RAW = -1
PACKET, RELAYED = 0, 1
KINDS = frozenset({"part", "aggregate", "lacking"})
ALIGNMENT = 8
"""Bodies start at multiples of the largest entry's size, so that a tensor can be a view of what arrived."""

_LENGTH = struct.Struct("<H")


def encode_signed(message: Signed) -> bytes:
    """The bytes of a broadcast, at most `message.nbytes`."""
    return wire.pack((message.sender, message.step, message.phase, message.signature, message.payload))


def decode_signed(data: bytes | memoryview, max_bytes: int) -> Signed:
    """The broadcast in `data`, unverified. Malformed if it is longer than `max_bytes` (checked first) or not one."""
    if len(data) > max_bytes:
        raise Malformed(f"broadcast: {len(data)} bytes, at most {max_bytes} are allowed")
    fields = wire.check_fields(wire.unpack(bytes(data), max_bytes=max_bytes, what="broadcast"), "broadcast", 5)
    payload = fields.pop()
    if not isinstance(payload, bytes):
        raise Malformed(f"broadcast: expected a payload of bytes, got {type(payload).__name__}")
    return _signed(fields, payload)


def decode_digest(data: bytes | memoryview) -> bytes:
    """The 32 bytes of a digest; Malformed for any other length."""
    return wire.check_digest(bytes(data[: DIGEST_SIZE + 1]), "digest")


def encode_items(items: Sequence[Packet | Relayed]) -> list[bytes | memoryview]:
    """Packets and relayed broadcasts as pieces to be joined, bodies not copied; together at most their `nbytes`.

    An item is the length of its header (2 bytes), the header, its body, each padded to a multiple of 8 bytes.
    Errors: ValueError for an item that has no form on the wire, such as a tensor of another dtype.
    """
    pieces: list[bytes | memoryview] = []
    for item in items:
        header: tuple[Any, ...]
        body: bytes | memoryview
        if isinstance(item, Relayed):
            said = item.message
            body = said.payload
            header = (RELAYED, said.sender, said.step, said.phase, said.signature, len(body), item.chain)
        else:
            code, shape, body = _body(item.body)
            header = (PACKET, item.sender, item.step, item.kind, item.signature, item.part, code, shape)
        packed = wire.pack(header)
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
        header = wire.unpack(bytes(packed), max_bytes=MAX_HEADER, what="item")
        if not isinstance(header, list) or not header:
            raise Malformed("item: expected a list of fields")
        start = _aligned(start + 2 + length)
        item, start = _packet(header, view, start) if header[0] == PACKET else _relayed(header, view, start)
        items.append(item)
    if sum(item.nbytes for item in items) > max_bytes:
        raise Malformed(f"items: at most {max_bytes} bytes are allowed")
    return tuple(items)


def _signed(fields: list[Any], payload: bytes) -> Signed:
    sender, step, phase, signature = fields
    if not isinstance(phase, str) or not isinstance(signature, bytes) or len(signature) > MAX_SIGNATURE:
        raise Malformed("broadcast: expected a phase and a signature")
    return Signed(
        wire.check_int(sender, "sender"), wire.check_int(step, "step"), phase, payload=payload, signature=signature
    )


def _relayed(header: list[Any], view: memoryview, start: int) -> tuple[Relayed, int]:
    tag, *fields, size, chain = wire.check_fields(header, "item", 7)
    if tag != RELAYED:
        raise Malformed(f"item: expected the tag {PACKET} or {RELAYED}")
    body, end = _take(view, start, wire.check_int(size, "payload size"))

    def link(entry: Any, what: str) -> tuple[int, bytes]:
        relayer, signature = wire.check_fields(entry, what, 2)
        if not isinstance(signature, bytes) or len(signature) > MAX_SIGNATURE:
            raise Malformed(f"{what}: expected a signature")
        return wire.check_int(relayer, what), signature

    links = wire.check_list(chain, "chain", link, max_len=2**12)
    return Relayed(_signed(fields, bytes(body)), links), end


def _packet(header: list[Any], view: memoryview, start: int) -> tuple[Packet, int]:
    _, sender, step, kind, signature, part, code, shape = wire.check_fields(header, "packet", 8)
    if not isinstance(signature, bytes) or len(signature) > MAX_SIGNATURE:
        raise Malformed("packet: expected a signature")
    sizes = wire.check_list(shape, "shape", wire.check_int, max_len=MAX_DIMS)
    if any(size < 0 for size in sizes) or wire.check_int(code, "dtype") >= len(DTYPES):
        raise Malformed(f"packet: no tensor has dtype {code} and shape {sizes}")
    body: torch.Tensor | bytes
    if code == RAW:
        if len(sizes) != 1:
            raise Malformed("packet: raw bytes have one size")
        taken, end = _take(view, start, sizes[0])
        body = bytes(taken)
    else:
        dtype, count = DTYPES[code], math.prod(sizes)
        taken, end = _take(view, start, count * dtype.itemsize)
        body = torch.frombuffer(taken, dtype=dtype).view(sizes) if count else torch.empty(sizes, dtype=dtype)
    return (
        Packet(
            wire.check_word(kind, "kind", KINDS),
            wire.check_int(sender, "sender"),
            wire.check_int(step, "step"),
            wire.check_int(part, "part"),
            body,
            signature,
        ),
        end,
    )


def _take(view: memoryview, start: int, size: int) -> tuple[memoryview, int]:
    """`size` bytes from `start` on, and where the next item begins."""
    end = _aligned(start + size)
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


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _padding(length: int) -> bytes:
    return bytes(-length % ALIGNMENT)
