"""Who is who: Ed25519 keys, signatures, and the roster that maps peer numbers to public keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from btard.protocol.hashing import digest

SIGNATURE_SIZE = 64


class Identity:
    """A peer's key pair. The public key (32 bytes) is the peer's identity."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key: bytes = private_key.public_key().public_bytes_raw()

    @classmethod
    def from_seed(cls, *fields: str | int | bytes) -> Identity:
        """A reproducible identity, for simulations. A real peer calls `generate` and keeps its key."""
        return cls(Ed25519PrivateKey.from_private_bytes(digest("identity", *fields)))

    @classmethod
    def generate(cls) -> Identity:
        return cls(Ed25519PrivateKey.generate())

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message`."""
        return self._private_key.sign(message)

    def secret(self, *fields: str | int) -> bytes:
        """32 bytes that only the holder of this key can derive, the same on every rerun."""
        return digest("secret", self._private_key.private_bytes_raw(), *fields)


@dataclass(frozen=True)
class Roster:
    """The public keys of a run's peers; peer `i` is `keys[i]`."""

    keys: tuple[bytes, ...]

    def verify(self, peer: int, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is `peer`'s on `message`; False for an unknown peer or malformed bytes."""
        return 0 <= peer < len(self.keys) and verify_key(self.keys[peer], message, signature)

    def grown(self, key: bytes) -> Roster:
        """The roster with one more peer, whose number is the next one. Nobody is ever taken out of a roster."""
        return Roster((*self.keys, key))


# A pure function of its arguments: where several peers live in one process, each signature is checked once.
@lru_cache(maxsize=8192)
def verify_key(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` on `message` is that of the holder of the public key `key`; False for malformed bytes."""
    if len(signature) != SIGNATURE_SIZE:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        return False
    return True
