"""Digests of the contents of data sets and models, so that peers can compare what they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from btard.protocol.hashing import digest, tensor_digest


def data_digest(value: Any) -> bytes:
    """Return the digest, 32 bytes, of tensors, arrays, numbers, texts, and of lists and mappings of such.

    Equal for equal content. Of an object of any other class it is the class's name alone.
    """
    if isinstance(value, torch.Tensor):
        return tensor_digest(value, "tensor")
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return digest("array", str(value.dtype), str(value.shape), np.ascontiguousarray(value).tobytes())
    if isinstance(value, bytes):
        return digest("bytes", value)
    if value is None or isinstance(value, (bool, int, float, complex, str, np.generic)):
        return digest("value", repr(value))
    if isinstance(value, Mapping):
        return digest("mapping", *(data_digest(part) for pair in value.items() for part in pair))
    if isinstance(value, (list, tuple)):
        return digest("list", *map(data_digest, value))
    if hasattr(value, "__array_interface__"):  # such as an image of Pillow
        return data_digest(np.asarray(value))
    return digest("object", f"{type(value).__module__}.{type(value).__qualname__}")
