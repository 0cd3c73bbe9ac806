"""One key per peer: the Ed25519 key that signs its messages is also its libp2p identity, so a peer id names its key.

`python -m btard.swarm.identity KEY_FILE` creates the key if it is missing, and prints the peer id and the public key.
"""

from __future__ import annotations

import sys
from pathlib import Path

from nacl.signing import SigningKey

from btard.boundary import program
from btard.extras import need
from btard.files import write_file
from btard.protocol.identity import Identity

try:
    from hivemind.p2p import PeerID
    from hivemind.proto import crypto_pb2
except ImportError:
    need("swarm", "hivemind")  # for the program; elsewhere nobody comes here without it
    raise

USAGE = "usage: python -m btard.swarm.identity KEY_FILE"
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


@program("the same command begins again")
def main(argv: list[str] | None = None) -> int:
    """Print the peer id and the public key of an identity file."""
    words = sys.argv[1:] if argv is None else argv
    if words in (["-h"], ["--help"]):
        print(USAGE, "", __doc__, sep="\n")
        return 0
    if len(words) != 1 or words[0].startswith("-"):
        print(USAGE, file=sys.stderr)
        return 2
    try:
        identity = load_identity(Path(words[0]))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(peer_id_of(identity.public_key).to_base58())
    print(f"public key: {identity.public_key.hex()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
