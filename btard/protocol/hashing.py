"""H(...): domain-separated BLAKE3 over typed fields and tensors, and the named random streams drawn from it."""

from __future__ import annotations

import struct

import numpy as np
import torch
from blake3 import blake3

DIGEST_SIZE = 32

Field = str | int | bytes


def _frame(fields: tuple[Field, ...]) -> bytes:
    """Injective encoding of `fields`: every field carries its type and length, so no two tuples share bytes."""
    out = bytearray()
    for field in fields:
        if isinstance(field, bytes):
            tag, raw = b"b", field
        elif isinstance(field, str):
            tag, raw = b"s", field.encode()
        else:
            tag, raw = b"i", str(field).encode()
        out += tag + struct.pack("<I", len(raw)) + raw
    return bytes(out)


def digest(*fields: Field) -> bytes:
    """H(fields): 32 bytes. The first field should name the domain ("batch", "coin", ...)."""
    return blake3(_frame(fields)).digest()


def tensor_digest(tensor: torch.Tensor, *fields: Field) -> bytes:
    """H(fields, dtype, shape, bytes of `tensor`): 32 bytes, one read of the tensor's memory.

    Equal for equal content wherever it lies (device, strides). -0.0 and 0.0, and NaNs of different payload, differ.
    """
    host = tensor.detach().to("cpu").contiguous()
    hasher = blake3(_frame((*fields, str(host.dtype), "x".join(map(str, host.shape)))))
    # Flat first: a tensor without dimensions has no view as bytes.
    hasher.update(host.view(-1).view(torch.uint8).numpy().data if host.numel() else b"")
    return hasher.digest()


def stream(*fields: Field) -> np.random.Generator:
    """The random stream of this name: the only way in which the protocol and the attacks draw numbers."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest("stream", *fields)[:16], "little")))


def batch_seed(run_id: str, step: int, peer: int, previous_coin: bytes) -> bytes:
    """xi_i^t = H(run_id, "batch", t, i, r^{t-1}): the 32-byte seed of peer `peer`'s public batch at `step`."""
    return digest("batch", run_id, step, peer, previous_coin)
