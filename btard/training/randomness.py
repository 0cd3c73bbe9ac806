"""Random numbers that follow from a public seed, the same at all peers: dropout, augmentation, a dataset."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from btard.protocol.hashing import Field, digest

CPU = torch.device("cpu")
_ONE = threading.RLock()
"""The generators below belong to the whole process: peers in threads take turns."""


@contextmanager
def torch_seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Inside, what torch draws on the CPU and on `device` follows from `seed`, as after `torch.manual_seed`.

    Afterwards its generators are as if nothing had been drawn. One thread at a time is inside.
    """
    with _ONE, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed formats a traceback for CUDA each time
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def seeded(device: torch.device, *seed: Field) -> Iterator[None]:
    """Inside, what torch, numpy's global generator and Python's `random` draw follows from `seed`.

    Afterwards they are as if nothing had been drawn. One thread at a time is inside.
    """
    hashed = digest("seeded", *seed)
    with torch_seeded(int.from_bytes(hashed[:8], "little"), device):
        state = random.getstate(), np.random.get_state()  # noqa: NPY002  (others' code draws from it)
        random.seed(hashed)
        np.random.seed(np.frombuffer(hashed, dtype="<u4"))  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(state[0])
            np.random.set_state(state[1])  # noqa: NPY002
