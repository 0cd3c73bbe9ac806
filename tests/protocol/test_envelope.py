"""Bytes on the wire: round trips, sizes, and hostile bytes that become `Malformed` and nothing worse."""

from __future__ import annotations

import struct
import tracemalloc

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from btard.protocol.envelope import (
    DTYPES,
    KINDS,
    decode_items,
    decode_signed,
    decode_vouch,
    encode_items,
    encode_signed,
)
from btard.protocol.hashing import tensor_digest
from btard.protocol.limits import MAX_HEADER
from btard.protocol.signed import Packet, Relayed, Signed
from btard.protocol.wire import Malformed

NUMBERS = st.integers(-1, 2**31 - 1)
SIGNATURES = st.binary(min_size=64, max_size=64) | st.just(b"")
SIGNED = st.builds(
    Signed,
    sender=NUMBERS,
    step=NUMBERS,
    phase=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    payload=st.binary(max_size=300),
    signed=SIGNATURES,
)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    raw = torch.frombuffer(bytearray(draw(st.binary(min_size=1000, max_size=1000))), dtype=dtype)
    return raw[: int(torch.Size(shape).numel())].view(shape)


PACKETS = st.builds(
    Packet,
    kind=st.sampled_from(sorted(KINDS)),
    sender=NUMBERS,
    step=NUMBERS,
    part=NUMBERS,
    body=st.binary(max_size=200) | tensors(),
    signed=SIGNATURES,
)
CHAINS = st.lists(st.tuples(NUMBERS, SIGNATURES), max_size=20).map(tuple)
ITEMS = st.lists(PACKETS | st.builds(Relayed, message=SIGNED, chain=CHAINS), max_size=5)


def joined(items: list) -> bytearray:
    return bytearray().join(encode_items(items))


def same(a: Packet | Relayed, b: Packet | Relayed) -> bool:
    """Equality to the bit: NaN is NaN."""
    if isinstance(a, Packet) and isinstance(b, Packet) and isinstance(a.body, torch.Tensor):
        if not isinstance(b.body, torch.Tensor) or (a.body.dtype, a.body.shape) != (b.body.dtype, b.body.shape):
            return False
        equal = a.body.reshape(-1).view(torch.uint8).equal(b.body.reshape(-1).view(torch.uint8))
        return equal and replace(a, body=b"") == replace(b, body=b"")
    return a == b


@given(SIGNED)
def test_broadcasts_come_back_and_are_no_longer_than_they_say(message: Signed) -> None:
    data = encode_signed(message)
    assert len(data) <= message.nbytes
    assert decode_signed(data, len(data)) == message
    with pytest.raises(Malformed, match="are allowed"):
        decode_signed(data, len(data) - 1)


@given(ITEMS)
def test_items_come_back_and_are_no_longer_than_they_say(items: list) -> None:
    data = joined(items)
    limit = sum(item.nbytes for item in items)
    assert len(data) <= limit
    decoded = decode_items(data, limit)
    assert len(decoded) == len(items) and all(same(a, b) for a, b in zip(items, decoded, strict=True))
    if items:
        with pytest.raises(Malformed, match="are allowed"):
            decode_items(data, limit - 1)


@pytest.mark.parametrize("shape", [(2**30,), (3, 2**16, 2**14)])
def test_sizes_hold_for_the_largest_numbers(shape: tuple[int, ...]) -> None:
    last = 2**31 - 1
    body = torch.empty(1, dtype=torch.uint8).expand(shape)[..., :0]
    for item in (
        Packet("aggregate", last, last, last, body, bytes(64)),
        Relayed(Signed(last, last, "p", b"", b""), ()),
    ):
        assert len(joined([item])) <= item.nbytes
    chain = ((last, bytes(64)),) * 200
    relayed = Relayed(Signed(last, last, "accuse/0", bytes(70_000), bytes(64)), chain)
    assert len(joined([relayed])) <= relayed.nbytes


def test_tensors_are_views_of_what_arrived() -> None:
    body = torch.randn(100_001)
    data = joined([Packet("part", 0, 1, 2, b"abc", b""), Packet("part", 1, 1, 2, body, bytes(64))])
    tracemalloc.start()
    _, packet = decode_items(data, 2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**15
    assert isinstance(packet, Packet) and isinstance(packet.body, torch.Tensor) and packet.body.equal(body)
    start = torch.frombuffer(data, dtype=torch.uint8).data_ptr()
    assert start < packet.body.data_ptr() < start + len(data)


@pytest.mark.parametrize("shape", [(0, 2**31 - 1, 2**31 - 1), (2**31 - 1, 0, 2**31 - 1), (0,), ()])
@pytest.mark.parametrize("dtype", DTYPES)
def test_whatever_is_decoded_has_a_digest(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    body = torch.empty(shape, dtype=dtype)
    [packet] = decode_items(joined([Packet("part", 1, 0, 2, body, bytes(64))]), 2**20)
    assert isinstance(packet, Packet) and isinstance(packet.body, torch.Tensor)
    assert tensor_digest(packet.body, "part") == tensor_digest(body, "part")


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_malformed(junk: bytes) -> None:
    for decode in (decode_signed, lambda data, limit: decode_items(bytearray(data), limit)):
        try:
            decode(junk, 300)
        except Malformed:
            continue


@settings(max_examples=300)
@given(ITEMS.filter(bool), st.data())
def test_changed_bytes_are_decoded_or_malformed(items: list, data: st.DataObject) -> None:
    wire = joined(items)
    for _ in range(3):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(wire)))
    for hostile in (wire, wire[:cut]):
        try:
            decode_items(hostile, 2**20)
        except Malformed:
            continue


def packed_item(*header: object, body: bytes = b"") -> bytearray:
    packed = msgpack.packb(header)
    out = bytearray(struct.pack("<H", len(packed)) + packed)
    out += bytes(-len(out) % 8) + body
    return out + bytes(-len(out) % 8)


@pytest.mark.parametrize(
    "header",
    [
        (0, 1, 1, "part", b"", 0, 0, [2**31 - 1, 2**31 - 1, 2**31 - 1]),  # more than there is memory
        (0, 1, 1, "part", b"", 0, 0, [-1]),
        (0, 1, 1, "part", b"", 0, 0, [-2, -2]),
        (0, 1, 1, "part", b"", 0, 0, [1, 1, 1, 1]),
        (0, 1, 1, "part", b"", 0, 7, [1]),
        (0, 1, 1, "part", b"", 0, -2, [1]),
        (0, 1, 1, "part", b"", 0, -1, []),
        (0, 1, 1, "part", b"", 0, -1, [2**31 - 1]),
        (0, 1, 1, "pickle", b"", 0, 0, [1]),
        (0, 1, 1, "part", bytes(129), 0, 0, [1]),
        (0, 1, 2**31, "part", b"", 0, 0, [1]),
        (0, True, 1, "part", b"", 0, 0, [1]),
        (0, 1, 1, "part", b"", 0, 0),
        (1, 1, 1, "commit", b"", 2**31 - 1, []),
        (1, 1, 1, "commit", b"", 0, [[1, b"", 2]]),
        (1, 1, 1, "commit", b"", 0, [[1, bytes(129)]]),
        (1, 1, 1, 5, b"", 0, []),
        (2, 1, 1, "commit", b"", 0, []),
        ([], 1, 1, "commit", b"", 0, []),
        (),
    ],
)
def test_hostile_headers_are_malformed_and_take_the_whole_list_with_them(header: tuple) -> None:
    good = joined([Packet("part", 1, 2, 3, torch.zeros(4), b"")])
    for data in (packed_item(*header, body=bytes(64)), good + packed_item(*header, body=bytes(64))):
        with pytest.raises(Malformed):
            decode_items(data, 2**40)


def test_nested_lists_cannot_blow_up() -> None:
    """A header of empty lists in lists is refused after memory of a small constant, however many there are."""
    nested = struct.pack("<H", MAX_HEADER) + b"\x91" * 500 + b"\x90" * (MAX_HEADER - 500)
    tracemalloc.start()
    with pytest.raises(Malformed):
        decode_items(bytearray(nested * 100), 2**40)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


def test_a_vouch_is_a_signature() -> None:
    assert decode_vouch(bytes(range(64))).signature == bytes(range(64))
    for wrong in (b"", bytes(63), bytes(65), bytes(10_000)):
        with pytest.raises(Malformed):
            decode_vouch(wrong)


@pytest.mark.parametrize("body", [torch.zeros(1, dtype=torch.complex64), torch.zeros(1, 1, 1, 1)])
def test_a_tensor_without_a_form_is_the_senders_mistake(body: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="no form on the wire"):
        encode_items([Packet("part", 0, 0, 0, body, b"")])
