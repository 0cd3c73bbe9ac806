"""Ideal commitments, for simulations: a tensor stands for itself, and nobody has to read it to commit to it.

Within one process a commitment can be a number that is given to a tensor when it is first seen, and again to any tensor
of the same bytes. That is what a hash without collisions does, at no cost as long as everybody holds the same memory.
Such numbers mean nothing outside of the process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock

import torch

from btard.protocol.hashing import Field, digest

Slot = tuple[str, int, int, int]
"""What a commitment is to: kind, sender, step, part."""


class IdealCommitments:
    """The tensors that were committed to in the last two steps. They are kept, and must not be changed meanwhile."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self._seen: dict[Slot, list[tuple[torch.Tensor, int, bytes]]] = {}
        self._lock = Lock()

    def digest(self, slot: Slot, tensor: torch.Tensor) -> bytes:
        """32 bytes: the same for tensors of the same type, shape and bytes in this slot, and for no others."""
        with self._lock:
            seen = self._seen.setdefault(slot, [])
            for known, version, hashed in seen:
                if _same(known, version, tensor):
                    return hashed
            fields: tuple[Field, ...] = (*slot, str(tensor.dtype), "x".join(map(str, tensor.shape)), len(seen))
            seen.append((tensor, tensor._version, digest("ideal", self.run_id, *fields)))
            return seen[-1][2]

    def learn(self, slot: Slot, tensor: torch.Tensor, hashed: bytes) -> None:
        """That `tensor` was committed to as `hashed`, as a checkpoint says."""
        with self._lock:
            self._seen.setdefault(slot, []).append((tensor, tensor._version, hashed))

    def learn_step(self, committed: Iterable[tuple[Slot, torch.Tensor, bytes]]) -> None:
        """What was committed to in the step of a checkpoint."""
        for slot, tensor, hashed in committed:
            self.learn(slot, tensor, hashed)

    def forget(self, step: int) -> None:
        """Drop what was committed to before `step`."""
        self._seen = {slot: seen for slot, seen in self._seen.items() if slot[2] >= step}

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Inside, these are the commitments of all peers of this process."""
        global current
        before, current = current, self
        try:
            yield
        finally:
            current = before


current: IdealCommitments | None = None
"""What stands in for hashes at present; None: nothing does."""


def _same(known: torch.Tensor, version: int, tensor: torch.Tensor) -> bool:
    """Whether both have the same bytes: seen at once where it is the same memory, unchanged."""
    if known.dtype != tensor.dtype or known.shape != tensor.shape or known.device != tensor.device:
        return False
    if known.data_ptr() == tensor.data_ptr() and known.stride() == tensor.stride():
        return known._version == version or not known.numel()
    # By bytes, as a hash would: 0.0 and -0.0 differ, and NaN equals itself.
    return torch.equal(known.contiguous().view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8))
