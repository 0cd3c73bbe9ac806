"""What a peer commits to: 32 bytes that stand for a part or an aggregate. Hashes, or in simulations the tensor itself.

Within one process a commitment can be a number that is given to a tensor when it is first seen, and again to any tensor
of the same bytes. That is what a hash without collisions does, at no cost as long as everybody holds the same memory.
Such numbers mean nothing outside of the process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock

import torch

from btard.protocol.hashing import Field, content_digest, digest, tensor_digest
from btard.protocol.memory import NOTHING, Memory, remembered
from btard.protocol.messages import Packet, is_sound
from btard.protocol.record import Split

Slot = tuple[str, int, int, int]
"""What a commitment is to: kind, sender, step, part."""


class Commitments(ABC):
    """The commitments of run `run_id`. A driver makes them and hands them to its peers, which may work in threads."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id

    @abstractmethod
    def of_tensor(self, slot: Slot, tensor: torch.Tensor) -> bytes:
        """32 bytes: the same for tensors of the same type, shape and bytes in this slot, and for no others."""

    def digest(self, kind: str, sender: int, step: int, part: int, body: torch.Tensor | bytes) -> bytes:
        """h_i[j] = H(run_id, t, i, j, g_i[j]) for kind "part", H(a[j]) for kind "aggregate"."""
        if isinstance(body, torch.Tensor):
            return self.of_tensor((kind, sender, step, part), body)
        return digest(kind, self.run_id, sender, step, part, "bytes", body)

    def of_packet(self, packet: Packet) -> bytes:
        """What the sender of `packet` commits to if it commits to what is in it."""
        return self.digest(packet.kind, packet.sender, packet.step, packet.part, packet.body)

    def sound(self, hashed: bytes, tensor: torch.Tensor) -> bool:
        """Whether `tensor`, to which `hashed` is the commitment, holds finite numbers in their one form."""
        return is_sound(tensor)

    def parts(self, peer: int, step: int, gradient: torch.Tensor, split: Split) -> tuple[bytes, ...]:
        """h_i[j] of all parts j of `gradient` [d]."""
        bodies = (split.body("part", split.view(gradient, j)) for j in range(split.k))
        return tuple(self.digest("part", peer, step, j, body) for j, body in enumerate(bodies))

    @abstractmethod
    def learn(self, step: int, committed: Iterable[tuple[Slot, torch.Tensor, bytes]]) -> None:
        """That tensors were committed to at `step` as these bytes, as a checkpoint says. It need not hold all."""

    @abstractmethod
    def forget(self, step: int) -> None:
        """Nobody asks any more for what was committed to before `step`."""


SMALL = 2**11
"""Bytes up to which it is faster to find a hash that is known by them than to hash them again."""


@dataclass
class _Looked:
    """What came of looking at the entries of a tensor. None: nobody has."""

    sound: bool | None = None


@remembered(4096)
def _looked(hashed: bytes) -> _Looked:
    return _Looked()


_known_digest = remembered(4096)(content_digest)


class Hashed(Commitments):
    """BLAKE3. A large tensor is hashed on `threads` threads: a process that is one peer alone has more than one.

    What peers of one process ask repeatedly `memory` knows by the bytes in question, and by nothing less: whatever
    changes them, a write through numpy too, is seen. So large tensors are read and hashed each time.
    """

    def __init__(self, run_id: str, threads: int = 1, memory: Memory = NOTHING) -> None:
        super().__init__(run_id)
        self.threads, self.memory = threads, memory

    def of_tensor(self, slot: Slot, tensor: torch.Tensor) -> bytes:
        kind, sender, step, part = slot
        fields = (kind, self.run_id, sender, step, part)
        if tensor.dtype in (torch.float32, torch.float16) and tensor.nbytes <= SMALL and not tensor.is_cuda:
            content = tensor.detach().numpy().tobytes()
            return self.memory(_known_digest, content, tensor.dtype, tensor.shape, fields)
        return tensor_digest(tensor, *fields, threads=self.threads)

    def sound(self, hashed: bytes, tensor: torch.Tensor) -> bool:
        """Equal hashes are those of equal bytes, which were looked at once."""
        looked = self.memory(_looked, hashed)
        if looked.sound is None:
            looked.sound = is_sound(tensor)
        return looked.sound

    def parts(self, peer: int, step: int, gradient: torch.Tensor, split: Split) -> tuple[bytes, ...]:
        """One read of the gradient."""
        return super().parts(peer, step, gradient.detach().to("cpu"), split)  # one transfer instead of k

    def learn(self, step: int, committed: Iterable[tuple[Slot, torch.Tensor, bytes]]) -> None:
        """A hash can be computed again."""

    def forget(self, step: int) -> None:
        """Nothing is kept."""


class Ideal(Commitments):
    """The tensors that were committed to in the last two steps. They are kept, and must not be changed meanwhile."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self._seen: dict[Slot, list[tuple[torch.Tensor, int, bytes]]] = {}
        self._learned = -1
        """The last step whose commitments came from a checkpoint."""
        self._lock = Lock()

    def of_tensor(self, slot: Slot, tensor: torch.Tensor) -> bytes:
        _, _, step, _ = slot
        with self._lock:
            seen = self._seen.setdefault(slot, [])
            for known, version, hashed in seen:
                if _same(known, version, tensor):
                    return hashed
            fields: tuple[Field, ...] = (*slot, str(tensor.dtype), "x".join(map(str, tensor.shape)), len(seen))
            if step <= self._learned:  # the number may be one that was given before the checkpoint, to another tensor
                fields = (*fields, "new")
            seen.append((tensor, tensor._version, digest("ideal", self.run_id, *fields)))
            return seen[-1][2]

    def learn(self, step: int, committed: Iterable[tuple[Slot, torch.Tensor, bytes]]) -> None:
        """Whatever else is seen of `step` from now on equals nothing that anybody committed to."""
        with self._lock:
            self._learned = max(self._learned, step)
            for slot, tensor, hashed in committed:
                self._seen.setdefault(slot, []).append((tensor, tensor._version, hashed))

    def forget(self, step: int) -> None:
        self._seen = {slot: seen for slot, seen in self._seen.items() if slot[2] >= step}


def _same(known: torch.Tensor, version: int, tensor: torch.Tensor) -> bool:
    """Whether both have the same bytes: seen at once where it is the same memory, unchanged."""
    if known.dtype != tensor.dtype or known.shape != tensor.shape or known.device != tensor.device:
        return False
    if known.data_ptr() == tensor.data_ptr() and known.stride() == tensor.stride():
        return known._version == version or not known.numel()
    # By bytes, as a hash would: 0.0 and -0.0 differ, and NaN equals itself.
    return torch.equal(known.contiguous().view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8))
