"""What a user is told who gives an address or a port that does not work."""

import socket
import time
from pathlib import Path

import pytest

from btard.protocol.identity import Identity
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
    assert told.startswith(f"cannot listen at 127.0.0.1, port {port} (Daemon failed to start: ")
    assert "address already in use" in told and told.endswith("; change network.host or network.port")


def test_an_ip_that_this_machine_does_not_have() -> None:
    assert refusal(host="192.0.2.1").startswith("cannot listen at 192.0.2.1, port 0 (Daemon failed to start: ")


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
