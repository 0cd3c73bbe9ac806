"""Every decoder against bytes made to hurt it: a typed error or a value, never a crash, never more memory than stated.

`--hypothesis-profile long` tries many times as many.
"""

from __future__ import annotations

import random
import struct
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack
import msgspec
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from btard.drivers.local import LocalDriver
from btard.protocol import wire
from btard.protocol.behaviour import Context
from btard.protocol.config import ProtocolConfig
from btard.protocol.envelope import decode_items, decode_signed, decode_vouch, encode_items, encode_signed
from btard.protocol.identity import Identity
from btard.protocol.messages import Report
from btard.protocol.signed import Packet, Relayed, Signed, relay_digest
from btard.protocol.wire import Malformed
from btard.task import QuadraticTask
from tests.protocol.promises import Attacker, D, check_honest, play
from tests.protocol.test_messages import HASH, MESSAGES

LIMIT = 4096
SLACK = 200_000
"""Bytes that Python itself may allocate for an error and its message."""

KEY = Identity.from_seed("hostile")
REPORT = next(message for message in MESSAGES if isinstance(message, Report))


def signed(payload: Any) -> Signed:
    return Signed.create(KEY, b"context", 1, 7, "report", payload)


def items() -> list[Packet | Relayed]:
    message = signed(MESSAGES[0])
    part = Packet.create(
        KEY, "part", 1, 7, 2, torch.arange(6, dtype=torch.float32), hashed=bytes(32), context=bytes(32)
    )
    raw = Packet.create(KEY, "aggregate", 1, 7, 2, b"garbage", hashed=bytes(32), context=bytes(32))
    chain = ((1, KEY.sign(relay_digest(message.digest(b"context")))),)
    return [part, raw, Relayed(message, chain)]


def decoder_of(kind: type[Any]) -> Callable[[bytes], Any]:
    return lambda data: wire.decode(data, kind, max_bytes=LIMIT, what=kind.__name__)


DECODERS: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    **{type(p).__name__: (decoder_of(type(p)), wire.encode(p)) for p in MESSAGES},
    "broadcast": (lambda data: decode_signed(data, LIMIT), encode_signed(signed(REPORT))),
    "items": (lambda data: decode_items(bytearray(data), LIMIT), b"".join(bytes(p) for p in encode_items(items()))),
    "lists": (lambda data: wire.unpack(data, max_bytes=LIMIT, what="lists"), wire.pack([1, [HASH, "x", [0.5]]])),
    "vouch": (decode_vouch, 2 * HASH),
}

NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.sampled_from([-1, 0, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.binary(max_size=40), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=20,
)


@st.composite
def hurt(draw: st.DrawFn, valid: bytes) -> bytes:
    """Valid bytes with a few wounds: changed, cut out, repeated, or with the length of a list or body faked."""
    data = bytearray(valid)
    rng = random.Random(draw(st.integers(0, 2**32)))
    for _ in range(draw(st.integers(1, 6))):
        where, length = rng.randrange(len(data) + 1), rng.randrange(1, 9)
        match rng.randrange(6):
            case 0:
                data[where : where + length] = rng.randbytes(length)
            case 1:
                del data[where : where + length]
            case 2:
                data[where:where] = data[where : where + 4 * length] * rng.randrange(1, 4)
            case 3:
                data[where : where + 5] = bytes([rng.choice([0xC6, 0xDB, 0xDD, 0xDF, 0xC9])]) + struct.pack(
                    ">I", rng.choice([0, 1, 2**16, 2**31, 2**32 - 1])
                )
            case 4:
                data[where:where] = bytes([0x91]) * rng.randrange(1, 200)
            case 5:
                data = data[: max(1, where)]
        if not data:
            break
    return bytes(data)


def survives(decode: Callable[[bytes], Any], data: bytes, limit: int = LIMIT) -> None:
    """Decoded or Malformed, within the memory that is stated."""
    said = ""
    tracemalloc.start()
    try:
        decode(data)
    except Malformed as error:
        said = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(said) < 500, "an error must not repeat what a peer sent"
    assert peak <= SLACK + 100 * min(len(data), limit), f"{peak} bytes allocated for {len(data)} received"


@pytest.mark.parametrize("name", DECODERS)
@given(junk=st.binary(max_size=300))
@example(b"")
@example(b"\xdd\xff\xff\xff\xff" * 50)
@example(b"\xdd\x00\x00\x0f\xff" * 800)
@example(b"\x91" * 4000)
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc9\xff\xff\xff\xff\x01")
def test_any_bytes(name: str, junk: bytes) -> None:
    survives(DECODERS[name][0], junk)


@pytest.mark.parametrize("name", DECODERS)
@given(value=VALUES)
def test_any_structure(name: str, value: Any) -> None:
    survives(DECODERS[name][0], msgpack.packb(value))


@pytest.mark.parametrize("name", DECODERS)
@given(data=st.data())
def test_wounded_messages(name: str, data: st.DataObject) -> None:
    decode, valid = DECODERS[name]
    decode(valid)  # the unharmed one is fine
    survives(decode, data.draw(hurt(valid)))


@given(fields=st.lists(VALUES, max_size=9), body=st.binary(max_size=64), lie=st.integers(0, 2**16 - 1))
def test_any_header_of_an_item(fields: list[Any], body: bytes, lie: int) -> None:
    header = msgpack.packb(fields)
    for length in (len(header), lie):
        data = struct.pack("<H", length) + header + bytes(-(2 + len(header)) % 8) + body
        survives(DECODERS["items"][0], data)


@given(sizes=st.lists(NUMBERS, max_size=4), code=st.integers(-3, 9), body=st.binary(max_size=64))
def test_any_shape_of_a_tensor(sizes: list[int], code: int, body: bytes) -> None:
    header = msgpack.packb([0, 1, 7, "part", bytes(64), 2, code, sizes])
    survives(DECODERS["items"][0], struct.pack("<H", len(header)) + header + bytes(-(2 + len(header)) % 8) + body)


@pytest.mark.parametrize("name", DECODERS)
def test_what_is_too_long_is_not_read(name: str) -> None:
    decode, valid = DECODERS[name]
    data = valid + bytes(10 * LIMIT)
    survives(decode, data, limit=0)
    with pytest.raises(Malformed):
        decode(data)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("count", [b"\xdc\xff\xff", b"\xdd\x00\xff\xff\xff", b"\xdd\xff\xff\xff\xff"])
def test_lists_are_not_made_as_long_as_they_say(name: str, count: bytes) -> None:
    """Five bytes could cost gigabytes, and a thousand such headers within each other a thousand times as much."""
    decode, valid = DECODERS[name]
    bodies = [b"", bytes(40), valid, valid[1:], HASH, b"\x90" * 40]
    for bomb in [count * depth + body for depth in (1, 2, 500) for body in bodies]:
        survives(decode, bomb)
        survives(decode, b"\x92" + bomb)


@given(value=VALUES)
def test_what_is_read_agrees_with_msgpack(value: Any) -> None:
    """What msgpack can read is refused for a map or its depth alone, and what is read is what msgpack reads."""
    packed = msgpack.packb(value)
    found, refused = None, ""
    try:
        found = wire.unpack(packed, max_bytes=10_000, what="test")
    except Malformed as error:
        refused = str(error)
    if refused:
        assert "a map" in refused or "deep" in refused
    else:
        assert wire.pack(found) == wire.pack(msgpack.unpackb(packed))


@pytest.mark.parametrize("cut", range(1, 60))
def test_every_cut_is_noticed(cut: int) -> None:
    packed = wire.encode(REPORT)
    shorter = packed[: len(packed) - min(cut, len(packed))]
    for decode in (wire.unpack, partial(wire.decode, form=Report)):
        with pytest.raises(Malformed):
            decode(shorter, max_bytes=LIMIT, what="test")


class Vast(Attacker):
    """Sends tensors of a shape that torch has and numpy has not, in the place of all of its packets."""

    def dispatch(self, ctx: Context, phase: str, packets: dict[int, list[Packet]]) -> dict[int, list[Packet]]:
        empty = torch.empty((0, 2**31 - 1, 2**31 - 1))
        return {to: [msgspec.structs.replace(packet, body=empty) for packet in sent] for to, sent in packets.items()}


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
def test_a_tensor_of_a_shape_that_cannot_be_costs_nobody_but_its_sender(validation: Any) -> None:
    config = ProtocolConfig(peers=5, byzantine=1, run_id="vast", tau=1.0, validation=validation)
    driver = LocalDriver(config, QuadraticTask(D), behaviours={4: Vast()})
    results = play(driver, 3, torch.ones(D))
    check_honest(results, frozenset({4}))
    assert {peer for result in results for entry in result.removed for peer in entry.peers} == {4}
