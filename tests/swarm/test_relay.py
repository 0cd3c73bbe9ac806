"""A relay against those who ask for what it does not give; what it carries is in tests/albert/test_namespaces.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from btard.protocol.identity import Identity
from btard.protocol.wire import Malformed
from btard.swarm import relay
from btard.swarm.keys import peer_id_of
from btard.swarm.node import Node


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    """One that serves, and one that asks."""
    serving = Node(Identity.generate(), relay="serve").start()
    asking = Node(Identity.generate(), initial_peers=serving.addresses).start()
    yield serving, asking
    asking.close()
    serving.close()


def answer(nodes: tuple[Node, Node], request: bytes) -> relay.Fields:
    async def ask() -> relay.Fields:
        reader, writer = await nodes[1].dial(nodes[0].identity.public_key, relay.HOP)
        try:
            writer.write(relay._varint(len(request)) + request)
            await writer.drain()
            return await asyncio.wait_for(relay._receive(reader), 5)
        finally:
            writer.close()

    return nodes[1].run(ask())


def connect_to(peer: bytes) -> bytes:
    return relay._encode([(relay.TYPE, relay.CONNECT), (relay.PEER, relay._encode([(1, peer)]))])


def test_whoever_asks_may_be_reached_here(nodes: tuple[Node, Node]) -> None:
    told = answer(nodes, relay._encode([(relay.TYPE, relay.RESERVE)]))
    assert told[relay.TYPE] == relay.STATUS and told[relay.HOP_STATUS] == relay.OK
    reservation = told[relay.RESERVATION]
    assert isinstance(reservation, bytes)
    until = relay._decode(reservation)[1]
    assert isinstance(until, int) and 3000 < until - time.time() < 3700


def test_nobody_is_dialled_for_strangers(nodes: tuple[Node, Node]) -> None:
    told = answer(nodes, connect_to(peer_id_of(Identity.generate().public_key).to_bytes()))
    assert told == {relay.TYPE: relay.STATUS, relay.HOP_STATUS: relay.NO_RESERVATION}


def test_a_peer_that_does_not_answer_is_not_waited_for(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def mute(*_: object) -> None:
        await asyncio.sleep(5)

    monkeypatch.setattr(relay, "ANSWER", 1.0)
    monkeypatch.setattr(nodes[0].p2p, "call_binary_stream_handler", mute)
    told = answer(nodes, connect_to(nodes[1].p2p.peer_id.to_bytes()))
    assert told == {relay.TYPE: relay.STATUS, relay.HOP_STATUS: relay.FAILED}


def test_one_peer_does_not_open_any_number_of_connections(
    nodes: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "CIRCUITS", 0)
    told = answer(nodes, connect_to(nodes[1].p2p.peer_id.to_bytes()))
    assert told == {relay.TYPE: relay.STATUS, relay.HOP_STATUS: relay.TOO_MANY}


@pytest.mark.parametrize(
    "request_", [b"\x08\x07", b"\x0b\x00", b"\x12\x7f", b"\x08\xff", relay._encode([(1, 1), (2, 3)])]
)
def test_nonsense_is_answered_as_such(nodes: tuple[Node, Node], request_: bytes) -> None:
    assert answer(nodes, request_) == {relay.TYPE: relay.STATUS, relay.HOP_STATUS: relay.MALFORMED}


def test_messages_of_any_size_are_not_read(nodes: tuple[Node, Node]) -> None:
    async def receive(data: bytes) -> relay.Fields:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        return await relay._receive(reader)

    for size in (b"\x81\x20", b"\xff\xff\xff"):
        with pytest.raises(Malformed, match="relay: a "):
            asyncio.run(receive(size + bytes(100)))


def test_what_is_encoded_is_decoded() -> None:
    fields = {1: 0, 2: b"", 3: b"x" * 300, 4: 2**40, 5: 127}
    assert relay._decode(relay._encode(list(fields.items()))) == fields
    assert relay._decode(b"") == {}
