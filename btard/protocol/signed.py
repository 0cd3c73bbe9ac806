"""What carries messages and tensors between peers, and the signatures on it: `Signed`, what goes with it, `Packet`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from msgspec import Struct
from msgspec.structs import replace

from btard.protocol import half, wire
from btard.protocol.half import values_of
from btard.protocol.hashing import digest, signed_digest
from btard.protocol.identity import SIGNATURE_SIZE, Identity, Roster, Signing
from btard.protocol.memory import NOTHING, Later, Memory, remembered
from btard.protocol.messages import P
from btard.protocol.wire import Malformed, Message


@remembered(4096)
def _decode(payload: bytes, kind: type[Any], max_bytes: int) -> Any:
    return wire.decode(payload, kind, max_bytes=max_bytes, what=kind.__name__)


@remembered(8192)
def _signed_digest(context: bytes, sender: int, step: int, phase: str, payload: bytes) -> bytes:
    return digest("broadcast", context, sender, step, phase, payload)


SIGNED_OVERHEAD = 32
"""Bytes of a `Signed` in addition to payload, signature and phase: sender, step, and the lengths of the fields."""


class Signed(Struct, frozen=True, gc=False):
    """A broadcast message: payload bytes of one sender in one phase of one step, and the sender's signature.

    `signed` is the signature, made only now where nobody may look at it.
    """

    sender: int
    step: int
    phase: str
    payload: bytes
    signed: bytes | Signing

    @property
    def signature(self) -> bytes:
        return self.signed.look() if isinstance(self.signed, Later) else self.signed

    @classmethod
    def create(
        cls,
        identity: Identity,
        context: bytes,
        sender: int,
        step: int,
        phase: str,
        payload: Message,
        memory: Memory = NOTHING,
    ) -> Signed:
        """`context` is `StepRecord.context`: a signature is valid only for one run, step and state of the ledger."""
        unsigned = cls(sender, step, phase, wire.encode(payload), b"")
        return replace(unsigned, signed=identity.signing(unsigned.digest(context, memory), memory))

    def digest(self, context: bytes, memory: Memory = NOTHING) -> bytes:
        """What the signature is on."""
        return memory(_signed_digest, context, self.sender, self.step, self.phase, self.payload)

    def proven(self, context: bytes, roster: Roster, memory: Memory = NOTHING) -> bytes | None:
        """Its digest if the named sender really signed these bytes for this step and phase, else None."""
        hashed = self.digest(context, memory)
        return hashed if roster.verify(self.sender, hashed, self.signed, memory) else None

    @property
    def nbytes(self) -> int:
        """Its size on a wire, rounded up a little."""
        signature = SIGNATURE_SIZE if isinstance(self.signed, Later) else len(self.signed)
        return len(self.payload) + signature + len(self.phase) + SIGNED_OVERHEAD

    def open(self, kind: type[P], max_bytes: int, memory: Memory = NOTHING) -> P:
        """The payload as `kind`; Malformed if it is too long or of another form."""
        result: P = memory(_decode, self.payload, kind, max_bytes)
        return result


class Relayed(Struct, frozen=True, gc=False):
    """A broadcast passed on, with the signatures of the peers that passed it on: (relayer, signature).

    Each signature is on `relay_digest` of the broadcast's digest.
    """

    message: Signed
    chain: tuple[tuple[int, bytes], ...]

    @property
    def nbytes(self) -> int:
        """Its size on a wire, rounded up a little."""
        return self.message.nbytes + 8 + sum(len(signature) + 8 for _, signature in self.chain)


def relay_digest(message_digest: bytes) -> bytes:
    """What a relayer signs."""
    return digest("relay", message_digest)


class Vouch(Struct, frozen=True, gc=False):
    """A peer's signature on `statement`, what it says it heard in a phase. On a wire it is the signature alone.

    `statement` is b"" for one that came from elsewhere: then the signature shows what it is on. `signed` is made only
    when somebody looks at it.
    """

    statement: bytes
    signed: bytes | Later[bytes]
    nbytes: ClassVar[int] = SIGNATURE_SIZE

    @property
    def signature(self) -> bytes:
        return self.signed.look() if isinstance(self.signed, Later) else self.signed

    def on(self, statement: bytes, sender: int, roster: Roster) -> bool:
        """Whether `sender` vouches for `statement`."""
        if self.statement:
            return self.statement == statement
        return roster.verify(sender, statement, self.signature)


class Bundle(Struct, frozen=True, gc=False):
    """Several letters in one message: `Signed`, `Vouch`, or the items of an exchange; None is nothing."""

    letters: tuple[Any, ...]

    @staticmethod
    def sized(letters: Iterable[int]) -> int:
        """Bytes of a bundle of letters of so many bytes: each has its length in front, and is padded."""
        return sum(ALIGNMENT + -(-size // ALIGNMENT) * ALIGNMENT for size in letters)


def _sign_packet(identity: Identity, context: bytes, hashed: bytes, memory: Memory) -> bytes:
    return identity.sign(signed_digest("packet", context, hashed), memory)


ALIGNMENT = 8
"""Bodies start at multiples of the largest entry's size, so that a tensor can be a view of what arrived."""

PACKET_OVERHEAD = 64
"""Bytes of a `Packet` in addition to body and signature: kind, sender, step, part, dtype, shape."""


class Packet(Struct, frozen=True, gc=False):
    """A part (kind "part") or an aggregate (kind "aggregate") on its way from one peer to another.

    Its digest is what the sender committed to in a broadcast, so the signature is looked at only when the two differ:
    then it is the evidence. `body` is bytes where a hostile sender sent something that is no tensor. `signed` is the
    signature, made only now where nobody may look at it.
    """

    kind: str
    sender: int
    step: int
    part: int
    body: torch.Tensor | bytes
    signed: bytes | Later[bytes]

    @property
    def signature(self) -> bytes:
        return self.signed.look() if isinstance(self.signed, Later) else self.signed

    @property
    def nbytes(self) -> int:
        """Its size on a wire, rounded up a little."""
        body = self.body.nbytes if isinstance(self.body, torch.Tensor) else len(self.body)
        signature = SIGNATURE_SIZE if isinstance(self.signed, Later) else len(self.signed)
        return body + signature + PACKET_OVERHEAD

    @classmethod
    def create(
        cls,
        identity: Identity,
        kind: str,
        sender: int,
        step: int,
        part: int,
        body: torch.Tensor | bytes,
        *,
        hashed: bytes,
        context: bytes,
        memory: Memory = NOTHING,
    ) -> Packet:
        """`hashed`: the commitment to `body`, which is what the sender signs, bound to the step's `context`.

        Whoever remembers signs it when somebody looks: among peers of one process that is when the two differ.
        """
        return cls(kind, sender, step, part, body, memory.later(_sign_packet, identity, context, hashed, memory))

    def authentic(self, hashed: bytes, context: bytes, roster: Roster, memory: Memory = NOTHING) -> bool:
        """Whether the sender signed a packet of commitment `hashed` in the step of this `context`."""
        return roster.verify(self.sender, signed_digest("packet", context, hashed), self.signature, memory)


def tensor_of(
    packet: Packet, size: int, sound: Callable[[torch.Tensor], bool] | None = None, *, halved: bool = False
) -> torch.Tensor:
    """The packet's values [size], float32 and finite; Malformed says what is wrong. Costs one read of the body.

    `sound` says whether a body holds numbers that mean something, by default `is_sound`. `halved`: it has to have come
    as float16 (`half.py`).
    """
    body = packet.body
    dtype, shape = (torch.float16, (size + 1,)) if halved else (torch.float32, (size,))
    if not isinstance(body, torch.Tensor):
        raise Malformed(f"expected a {dtype} tensor of {shape[0]} entries, got {len(body)} raw bytes")
    if body.dtype != dtype or body.shape != shape:
        raise Malformed(f"expected {dtype} of shape {shape}, got {body.dtype} of shape {tuple(body.shape)}")
    if not (sound or is_sound)(body):
        raise Malformed("holds NaN or Inf, or float16 of another scale than theirs")
    return values_of(body)


def is_sound(body: torch.Tensor) -> bool:
    """Whether `body`, float32 or what stands for it as float16, holds finite numbers in their one form."""
    return half.is_sound(body) if body.dtype is torch.float16 else is_finite(body)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all entries are finite: one fast read, because a sum with an infinite or NaN entry is never finite.

    That of finite ones can overflow: then each entry is looked at.
    """
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())
