"""Memory that is used again and again: the first touch of a page costs more than all later work with it."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

_SMALLEST, _LARGEST = 1 << 15, 1 << 26
"""Bytes from which, and up to which, memory is kept, per use and thread: less is found as fast as it is looked up."""

_kept = threading.local()


def scratch(use: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory of this shape, which this thread's next call for the same `use` overwrites.

    CUDA has its own cache of memory.
    """
    count = math.prod(shape)
    if device.type != "cpu" or not _SMALLEST <= count * dtype.itemsize <= _LARGEST:
        return torch.empty(shape, dtype=dtype, device=device)
    name = f"{use} {dtype}"
    memory: Tensor | None = getattr(_kept, name, None)
    if memory is None or memory.numel() < count:
        with torch.inference_mode(False):  # the next call may come outside of the caller's inference mode
            memory = torch.empty(count, dtype=dtype)
        setattr(_kept, name, memory)
    return memory[:count].view(shape)
