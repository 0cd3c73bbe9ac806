"""What a user is told who gives an address or a port that does not work."""

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID
from hivemind.utils import MSGPackSerializer, get_dht_time

from btard.protocol.identity import Identity
from btard.swarm import node as node_module
from btard.swarm.keys import peer_id_of
from btard.swarm.node import Node, Unreachable
from btard.swarm.notes import SWARM, Notes, write


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return int(unused.getsockname()[1])


def refusal(**settings: object) -> str:
    node = Node(Identity.generate(), **settings)  # type: ignore[arg-type]
    began = time.monotonic()
    with pytest.raises(Unreachable) as raised:
        node.start()
    assert time.monotonic() - began < 20, "what cannot get better is not tried again"
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_port_that_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = refusal(port=port)
    assert told.startswith(f"cannot listen at 127.0.0.1, port {port} (")
    assert "ddress already in use" in told and told.endswith("; change network.host or network.port")


def test_no_two_nodes_share_a_port() -> None:
    """Their daemons could, and connections would go to one or the other."""
    node = Node(Identity.generate(), port=free_port()).start()
    try:
        assert "ddress already in use" in refusal(port=node.port)
    finally:
        node.close()


def test_an_ip_that_this_machine_does_not_have() -> None:
    assert refusal(host="192.0.2.1").startswith("cannot listen at 192.0.2.1, port 0 (")


@pytest.mark.parametrize("address", ["10.0.0.1:31337", "/ip4/10.0.0.1/tcp/31337", "/ip4/10.0.0.1/tcp/31337/p2p/short"])
def test_an_address_that_is_none(address: str) -> None:
    told = refusal(initial_peers=[address])
    assert told.startswith(
        f"the swarm at {address} could not be reached ({address!r} is no address of a peer, expected"
    )


def test_nobody_at_an_address() -> None:
    address = f"/ip4/127.0.0.1/tcp/9/p2p/{peer_id_of(Identity.generate().public_key)}"
    node = Node(Identity.generate(), initial_peers=[address])
    with pytest.raises(Unreachable, match=r"could not be reached .*; check network\.initial_peers, that the first"):
        node.start(timeout=3.0)


def test_a_daemon_that_has_ended_is_not_taken_for_others_that_are_silent() -> None:
    node = Node(Identity.generate()).start()
    daemon = node.p2p._child
    daemon.kill()
    node.submit(daemon.wait()).result(10)
    with pytest.raises(Unreachable, match=r"the libp2p daemon has ended \(exit code -9\); the same command goes on"):
        node.run(node.visible())
    node.close()


def test_the_first_address_is_one_for_other_machines() -> None:
    for settings, wanted in (
        ({}, "/ip4/127.0.0.1/tcp/"),
        ({"announce": "203.0.113.7", "port": free_port()}, "/ip4/203.0.113.7/tcp/"),
    ):
        node = Node(Identity.generate(), **settings).start()  # type: ignore[arg-type]
        try:
            assert node.addresses[0].startswith(wanted)
        finally:
            node.close()
    node = Node(Identity.generate(), host="0.0.0.0").start()
    try:
        local = [address.startswith("/ip4/127.") for address in node.addresses]
        assert any(local) and local == sorted(local)
    finally:
        node.close()


def test_who_is_started_again_has_its_port_again_and_finds_others_where_they_were(tmp_path: Path) -> None:
    """The address in everybody's settings was that of a coordinator, whose port was any."""
    first, second = Identity.generate(), Identity.generate()
    coordinator = Node(first).start()
    trainer = Node(second, initial_peers=coordinator.addresses[:1]).start()
    notes = Notes(tmp_path)
    notes.write_address(coordinator.addresses[0])
    given = coordinator.addresses[:1]
    write(tmp_path / SWARM, {"addresses": ["nonsense", "/ip4/127.0.0.1/tcp/9/p2p/short", *trainer.addresses]})
    coordinator.close()
    try:
        # The coordinator is away: whoever only knows its address comes in by what it has noted.
        late = Node(Identity.generate(), initial_peers=given, known=notes.addresses).start()
        late.close()
        with socket.create_server(("127.0.0.1", notes.port)):  # its port is somebody else's now
            other = Node(first, before=notes.port).start()
            assert other.addresses[:1] != given
            other.close()
        again = Node(first, before=notes.port).start()
        assert again.addresses[:1] == given
        again.close()
    finally:
        trainer.close()


def test_who_looks_into_the_dht_finds_what_is_signed_whatever_strangers_put_beside_it() -> None:
    """One byte that hivemind could not decode, and nobody that looked there ever had an answer."""
    first = Node(Identity.generate()).start()
    stranger = Node(Identity.generate(), initial_peers=first.addresses[:1]).start()
    place, me, late = DHTID.generate(source="key"), first.identity.public_key, get_dht_time() + 86400.0
    assert first.run(first.publish("key", ["said"]))
    (entry,) = (kept for _, (kept, _) in first.dht.protocol.storage.get(place).value.items())
    junk: list[tuple[Any, bytes]] = [
        ("x", b"\xc1"),
        (me.hex(), entry),  # to last for longer than its author has said
        (me.hex(), entry[:-1] + b"x"),
        (stranger.identity.public_key.hex(), entry),
        (7, entry),
        (None, MSGPackSerializer.dumps("a value in the place of the entries")),
    ]

    async def put() -> list[Any]:
        asked = [
            stranger.dht.protocol.call_store(first.p2p.peer_id, [place], [value], late, subkeys=[subkey])
            for subkey, value in junk
        ]
        return [await answer for answer in asked]

    async def look(node: Node) -> Any:
        return await asyncio.wait_for(node.records("key"), 5.0)

    try:
        assert stranger.run(put()) == [[False]] * len(junk), "it is not kept"
        assert first.run(look(first)) == stranger.run(look(stranger)) == {me: ["said"]}
        assert stranger.run(stranger.publish("key", 7)), "anybody may say something of itself"
        assert first.run(look(first)) == {me: ["said"], stranger.identity.public_key: 7}
        stranger.dht.protocol.storage.store_subkey(place, me.hex(), b"\xc1", late)  # it answers whatever it likes
        assert first.run(look(first)) == {me: ["said"], stranger.identity.public_key: 7}
        assert first.run(first.dht.protocol.call_find(stranger.p2p.peer_id, [place]))[place][0] is None
    finally:
        stranger.close()
        first.close()


def test_a_search_that_never_ends_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any, **__: Any) -> Any:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(node_module, "LOOK", 0.01)
    monkeypatch.setattr(DHTNode, "get_many_by_id", never)
    monkeypatch.setattr(DHTNode, "store_many", never)
    node = Node(Identity.generate()).start()

    async def asked() -> tuple[Any, bool]:
        return await asyncio.wait_for(node.records("key"), 5.0), await asyncio.wait_for(node.publish("key", 1), 5.0)

    try:
        assert node.run(asked()) == ({}, False)
    finally:
        node.close()
