"""What a peer commits to: 32 bytes that represent a part or an aggregate. Hashes, or in simulations the tensor itself.

Within one process a commitment can be a number that is given to a tensor when it is first seen, and again to any tensor
of the same bytes. That is what a hash without collisions does, at no cost as long as everybody holds the same memory.
Such numbers mean nothing outside of the process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from threading import Lock

import torch

from btard.protocol.hashing import Field, digest, on_cpu, tensor_digest
from btard.protocol.memory import NOTHING, Memory
from btard.protocol.signed import Packet, is_sound
from btard.protocol.split import Split

Slot = tuple[str, int, int, int]
"""What a commitment refers to: kind, sender, step, part."""


class Commitments(ABC):
    """The commitments of run `run_id`. A driver creates them and hands them to its peers, which may run in threads.

    `memory` knows what peers of one process would look at repeatedly; `parallel`: all cores hash a large tensor.
    """

    def __init__(self, run_id: str, memory: Memory = NOTHING, parallel: bool = False) -> None:
        self.run_id, self.memory, self.parallel = run_id, memory, parallel
        self._sound: dict[bytes, bool] = {}
        """Commitment -> whether it is to finite numbers in their only valid form, as somebody here has seen."""

    @abstractmethod
    def of_tensor(self, slot: Slot, tensor: torch.Tensor) -> bytes:
        """32 bytes: the same for tensors of the same type, shape and bytes in this slot, and for no others."""

    def digest(self, kind: str, sender: int, step: int, part: int, body: torch.Tensor | bytes) -> bytes:
        """h_i[j] = H(run_id, t, i, j, g_i[j]) for kind "part", H(a[j]) for kind "aggregate"."""
        if isinstance(body, torch.Tensor):
            return self.of_tensor((kind, sender, step, part), body)
        return digest(kind, self.run_id, sender, step, part, "bytes", body)

    def of_packet(self, packet: Packet) -> bytes:
        """The commitment of the sender of `packet` to its contents."""
        return self.digest(packet.kind, packet.sender, packet.step, packet.part, packet.body)

    def sound(self, hashed: bytes, tensor: torch.Tensor) -> bool:
        """Whether `tensor` holds finite numbers in their only valid form; `hashed` is its commitment.

        Equal commitments mean equal bytes, which are looked at once.
        """
        sound = self._sound.get(hashed)
        if sound is None:
            sound = is_sound(tensor)
            self._note([hashed], sound)
        return sound

    def known_sound(self, hashed: Iterable[bytes]) -> None:
        """Note that these are commitments to finite numbers in their only valid form, as somebody here has seen."""
        self._note(hashed, True)

    def _note(self, hashed: Iterable[bytes], sound: bool) -> None:
        if self.memory.remembers:
            self._sound.update(dict.fromkeys(hashed, sound))

    def parts(self, peer: int, step: int, gradient: torch.Tensor, split: Split) -> tuple[bytes, ...]:
        """h_i[j] of all parts j of `gradient` [d]."""
        bodies = (split.body("part", part) for part in split.views(gradient))
        return tuple(self.digest("part", peer, step, j, body) for j, body in enumerate(bodies))

    @abstractmethod
    def learn(self, step: int, committed: Iterable[tuple[Slot, torch.Tensor, bytes]]) -> None:
        """Restore the commitments of `step` to these tensors from a checkpoint, which need not hold all."""

    def forget(self, step: int) -> None:
        """Forget what was committed to before `step`: nobody asks for it any more."""
        self._sound = {}  # of all steps: what is asked for again is looked at again


class Hashed(Commitments):
    """BLAKE3. A process with a single peer hashes large tensors on all cores.

    Tensors are read and hashed each time: so whatever changes them, a write through numpy too, is seen.
    """

    def of_tensor(self, slot: Slot, tensor: torch.Tensor) -> bytes:
        kind, sender, step, part = slot
        fields = (kind, self.run_id, sender, step, part)
        return tensor_digest(tensor, *fields, parallel=self.parallel)

    def parts(self, peer: int, step: int, gradient: torch.Tensor, split: Split) -> tuple[bytes, ...]:
        """One read of the gradient."""
        return super().parts(peer, step, on_cpu(gradient.detach()), split)  # one transfer instead of k

    def learn(self, step: int, committed: Iterable[tuple[Slot, torch.Tensor, bytes]]) -> None:
        """A hash can be computed again."""


class Ideal(Commitments):
    """The tensors committed to in the last two steps. They are kept, and must not be changed in the meantime."""

    def __init__(self, run_id: str, memory: Memory = NOTHING, parallel: bool = False) -> None:
        super().__init__(run_id, memory, parallel)
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
            seen.append((tensor, _version(tensor), digest("ideal", self.run_id, *fields)))
            return seen[-1][2]

    def learn(self, step: int, committed: Iterable[tuple[Slot, torch.Tensor, bytes]]) -> None:
        """From now on, any other tensor of `step` equals nothing that anybody committed to."""
        with self._lock:
            self._learned = max(self._learned, step)
            for slot, tensor, hashed in committed:
                self._seen.setdefault(slot, []).append((tensor, _version(tensor), hashed))

    def forget(self, step: int) -> None:
        super().forget(step)
        self._seen = {slot: seen for slot, seen in self._seen.items() if slot[2] >= step}


def _version(tensor: torch.Tensor) -> int:
    """How often it was written to; 0 in inference mode, where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def _same(known: torch.Tensor, version: int, tensor: torch.Tensor) -> bool:
    """Whether both have the same bytes: immediate if it is the same memory, unchanged."""
    if known.dtype != tensor.dtype or known.shape != tensor.shape or known.device != tensor.device:
        return False
    if known.data_ptr() == tensor.data_ptr() and known.stride() == tensor.stride():
        return _version(known) == version or not known.numel()
    # By bytes, as a hash would: 0.0 and -0.0 differ, and NaN equals itself.
    return torch.equal(known.contiguous().view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8))
