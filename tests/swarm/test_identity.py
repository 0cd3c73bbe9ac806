"""Keys as libp2p identities: peer ids name their key, files of anything else are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hivemind.p2p import PeerID

from btard.protocol.identity import Identity
from btard.swarm.identity import main
from btard.swarm.keys import load_identity, peer_id_of, public_key_of
from btard.swarm.node import node_of


def test_a_peer_id_names_its_key() -> None:
    identity = Identity.from_seed("identity", 1)
    peer_id = peer_id_of(identity.public_key)
    assert peer_id.to_base58().startswith("12D3KooW")
    assert public_key_of(peer_id) == identity.public_key
    # A peer of stock hivemind has an RSA key, of which a peer id holds the hash alone.
    assert public_key_of(PeerID(b"\x12\x20" + bytes(32))) is None
    assert public_key_of(PeerID(b"\x00\x24" + bytes(36))) is None


def test_a_key_file_is_made_once_and_for_its_owner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "folder" / "identity.key"
    first = load_identity(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_identity(file).public_key == first.public_key
    assert main([str(file)]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == peer_id_of(first.public_key).to_base58()
    assert first.seed.hex() not in printed.out + printed.err


def test_other_files_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "identity.key"
    file.write_bytes(b"something else")
    with pytest.raises(ValueError, match="expected an Ed25519 identity"):
        load_identity(file)
    assert main([str(file)]) == 2 and main([]) == 2
    assert "expected an Ed25519 identity" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["", "nonsense", "/ip4/127.0.0.1/tcp/1"])
def test_addresses_without_a_peer_are_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is no address of a peer, expected something like"):
        node_of(address)
