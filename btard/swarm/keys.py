"""One key per peer: the Ed25519 key that signs its messages is also its libp2p identity, so a peer id names its key."""

from __future__ import annotations

from pathlib import Path

from hivemind.p2p import PeerID
from hivemind.proto import crypto_pb2
from nacl.signing import SigningKey

from btard.files import write_file
from btard.protocol.identity import Identity

_IDENTITY_MULTIHASH = 0
"""libp2p's short keys are not hashed: the peer id holds the key itself."""


def peer_id_of(public_key: bytes) -> PeerID:
    """The libp2p peer id of the holder of an Ed25519 `public_key` (32 bytes)."""
    encoded = crypto_pb2.PublicKey(key_type=crypto_pb2.KeyType.Ed25519, data=public_key).SerializeToString()
    return PeerID(bytes([_IDENTITY_MULTIHASH, len(encoded)]) + encoded)


def public_key_of(peer_id: PeerID) -> bytes | None:
    """The Ed25519 key (32 bytes) in a peer id; None for another kind of key, which none of our peers has."""
    raw = peer_id.to_bytes()
    if len(raw) < 2 or raw[0] != _IDENTITY_MULTIHASH or raw[1] != len(raw) - 2:
        return None
    key = raw[-32:]
    return key if peer_id_of(key).to_bytes() == raw else None


def write_identity(identity: Identity, file: Path) -> None:
    """Write the key of `identity` in the format of libp2p's daemon, readable only by its owner."""
    data = identity.seed + identity.public_key
    content = crypto_pb2.PrivateKey(key_type=crypto_pb2.KeyType.Ed25519, data=data).SerializeToString()
    write_file(file, content, private=True, shared=True)


def load_identity(file: Path) -> Identity:
    """The identity in `file`, which is created with a new key if it does not exist.

    Errors: ValueError, in one line, if the file holds anything else.
    """
    if not file.exists():
        write_identity(Identity.generate(), file)
    try:
        content = crypto_pb2.PrivateKey.FromString(file.read_bytes())
        if content.key_type != crypto_pb2.KeyType.Ed25519 or len(content.data) != 64:
            raise ValueError("it holds another kind of key")
        return Identity(SigningKey(content.data[:32]))
    except Exception as error:
        raise ValueError(
            f"{file}: expected an Ed25519 identity ({error}); delete it, and a new one is made: then this is a new peer"
        ) from None
