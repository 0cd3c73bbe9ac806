"""Who is who: Ed25519 keys, signatures, and the roster that maps peer numbers to public keys."""

from __future__ import annotations

from dataclasses import dataclass, field

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from btard.protocol.hashing import digest
from btard.protocol.memory import NOTHING, Later, Memory, remembered

SIGNATURE_SIZE = 64


class Identity:
    """A peer's key pair. The public key (32 bytes) is the peer's identity.

    `simulated`: it was made from a seed that everybody knows, and repeats its secrets in every life of a run.

    >>> import btard
    >>> len(btard.Identity.generate().public_key)
    32
    >>> btard.Identity.from_seed("run", 0).public_key == btard.Identity.from_seed("run", 0).public_key
    True
    """

    def __init__(self, private_key: SigningKey, *, simulated: bool = False) -> None:
        self._private_key, self.simulated = private_key, simulated
        self.public_key = bytes(private_key.verify_key)

    @classmethod
    def from_seed(cls, *fields: str | int | bytes) -> Identity:
        """A reproducible identity, for simulations. A real peer calls `generate` and keeps its key."""
        return cls(SigningKey(digest("identity", *fields)), simulated=True)

    @classmethod
    def generate(cls) -> Identity:
        return cls(SigningKey.generate())

    @property
    def seed(self) -> bytes:
        """The 32 secret bytes of the key, for storing it."""
        return bytes(self._private_key)

    def sign(self, message: bytes, memory: Memory = NOTHING) -> bytes:
        """The 64-byte Ed25519 signature of `message`, which `memory` then knows to be genuine."""
        signature = self._private_key.sign(message).signature
        memory(_made, self.public_key, message).signatures.add(signature)
        return signature

    def signing(self, message: bytes, memory: Memory) -> bytes | Signing:
        """The signature of `message`; if `memory` remembers anything, made when somebody looks at it."""
        return Signing(self, message, memory) if memory.remembers else self.sign(message, memory)

    def secret(self, *fields: str | int, epoch: bytes) -> bytes:
        """32 bytes that only the holder of this key can derive; others in every life of the run, which `epoch` names.

        Whoever has seen a peer's secret of a step would know it beforehand when the step is repeated. A simulated
        identity has the same ones in all lives: a resumed simulation is the same to the bit.
        """
        return digest("secret", self.seed, *fields, *(() if self.simulated else (epoch,)))


class Signing(Later[bytes]):
    """A signature of the holder of a key on a message, made when somebody looks at it."""

    __slots__ = ("key", "memory", "message")

    def __init__(self, identity: Identity, message: bytes, memory: Memory) -> None:
        super().__init__(Identity.sign, identity, message, memory)
        self.key, self.message, self.memory = identity.public_key, message, memory

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Signing) and (self.key, self.message) == (other.key, other.message)

    def __hash__(self) -> int:
        return hash(self.message)


@dataclass(frozen=True)
class Roster:
    """The public keys of a run's peers; peer `i` is `keys[i]`."""

    keys: tuple[bytes, ...]

    def verify(self, peer: int, message: bytes, signature: bytes | Signing, memory: Memory = NOTHING) -> bool:
        """Whether `signature` is `peer`'s on `message`; False for an unknown peer or malformed bytes."""
        return 0 <= peer < len(self.keys) and genuine(self.keys[peer], message, signature, memory)

    def grown(self, key: bytes) -> Roster:
        """The roster with one more peer, whose number is the next one. Nobody is ever taken out of a roster."""
        return Roster((*self.keys, key))


@dataclass
class _Made:
    """The signatures on one message that the holder of one key has made in this process."""

    signatures: set[bytes] = field(default_factory=set)


@remembered(8192)
def _made(key: bytes, message: bytes) -> _Made:
    return _Made()


def genuine(key: bytes, message: bytes, signature: bytes | Signing, memory: Memory) -> bool:
    """`verify_key`; for a signature made with this `memory`, now or later, the answer is known without computing it."""
    if isinstance(signature, Signing):
        if memory.remembers and signature.memory is memory and (signature.key, signature.message) == (key, message):
            return True
        signature = signature.look()
    return signature in memory(_made, key, message).signatures or memory(verify_key, key, message, signature)


@remembered(8192)
def verify_key(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` on `message` was made by the holder of the public key `key`; False for malformed bytes.

    False, too, for keys and points R of small order, for which there are signatures that nobody made, for keys that are
    encoded in another way than they must be, and for a number S that is not reduced: libsodium refuses these.
    """
    if len(signature) != SIGNATURE_SIZE:
        return False
    try:
        VerifyKey(key).verify(message, signature)
    except (BadSignatureError, ValueError):  # ValueError: a key of another length
        return False
    return True
