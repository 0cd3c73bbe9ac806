"""H(...): domain-separated BLAKE3 over typed fields and tensors, and the named random streams drawn from it."""

from __future__ import annotations

import struct
from functools import lru_cache

import numpy as np
import torch
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

DIGEST_SIZE = 32

PROTOCOL_VERSION = 11
"""Grows with every change of what peers say or sign, or of what a checkpoint or a proof holds. Peers and run folders of
another version are refused, and so are folders of the time before there were versions."""

Field = str | int | bytes


def _frame(fields: tuple[Field, ...]) -> bytes:
    """Injective encoding of `fields`: every field carries its type and length, so no two tuples share bytes."""
    return b"".join([_bytes_head(len(f)) + f if isinstance(f, bytes) else _encoded(f) for f in fields])


# Thousands of fields are framed in a step, nearly all of them words, peers and digests of 32 bytes. These two are kept
# for the whole process: bytes made of an integer or a word are the same for everybody and nobody can change them.
@lru_cache(maxsize=256)
def _bytes_head(length: int) -> bytes:
    return struct.pack("<cI", b"b", length)


@lru_cache(maxsize=4096, typed=True)
def _encoded(field: str | int) -> bytes:
    raw = str(field).encode()
    return struct.pack("<cI", b"s" if isinstance(field, str) else b"i", len(raw)) + raw


def digest(*fields: Field) -> bytes:
    """H(fields): 32 bytes. The first field should name the domain ("batch", "coin", ...)."""
    return blake3(_frame(fields)).digest()


def signed_digest(domain: str, *fields: Field) -> bytes:
    """The bytes to sign for `fields`: no signature is valid under another version of the protocol."""
    return digest(domain, PROTOCOL_VERSION, *fields)


def tensor_digest(tensor: torch.Tensor, *fields: Field, parallel: bool = False) -> bytes:
    """H(fields, dtype, shape, bytes of `tensor`): 32 bytes, one read of the tensor's memory; `parallel`: by all cores.

    Equal for equal content wherever it lies (device, strides). -0.0 and 0.0, and NaNs of different payload, differ.
    """
    head = _tensor_head(fields, tensor.dtype, *tensor.shape)
    if not tensor.numel():  # numpy has no array of some shapes that torch has, such as (0, 2^31, 2^31)
        return blake3(head).digest()
    if tensor.is_cpu and tensor.nbytes <= _SMALL and tensor.dtype in _PLAIN:
        return blake3(head + tensor.detach().numpy().tobytes()).digest()
    host = on_cpu(tensor.detach()).contiguous()
    # Flat first: a tensor without dimensions has no view as bytes.
    content = host.view(-1).view(torch.uint8).numpy().data
    # BLAKE3 has one pool of threads for all cores. For any other number it would make one for this tensor alone.
    threads = blake3.AUTO if parallel and len(content) >= _WORTH_THREADS else 1
    return blake3(head, max_threads=threads).update(content).digest()


@lru_cache(maxsize=4096)
def _tensor_head(fields: tuple[Field, ...], dtype: torch.dtype, *shape: int) -> bytes:
    """What is hashed before a tensor's bytes. Owners and senders hash each part, and each aggregate goes to many."""
    return _frame((*fields, str(dtype), "x".join(map(str, shape))))


_PLAIN = (torch.float32, torch.float16)
"""Types of tensors of which up to `_SMALL` bytes are hashed in a short way: it takes half the time."""
_SMALL = 2**11


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or a copy of it in the memory of the CPU.

    That of a GPU's goes into pinned memory, which torch keeps for the next one: new memory takes 30 times as long.
    """
    if not tensor.is_cuda:
        return tensor.cpu()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


_WORTH_THREADS = 2**20
"""Size in bytes from which several threads hash faster than one."""


def stream(*fields: Field) -> np.random.Generator:
    """The random stream of this name: the only source of random numbers in the protocol and the attacks.

    >>> import btard
    >>> btard.stream("docs", 1).random() == btard.stream("docs", 1).random() != btard.stream("docs", 2).random()
    True
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest("stream", *fields)[:16], "little")))


def batch_seed(run_id: str, step: int, peer: int, previous_coin: bytes) -> bytes:
    """xi_i^t = H(run_id, "batch", t, i, r^{t-1}): the 32-byte seed of peer `peer`'s public batch at `step`."""
    return digest("batch", run_id, step, peer, previous_coin)


UNIFORM_SCALE = (3 / (4.0**15 - 1)) ** 0.5
"""Multiplied by this, the numbers of `uniform` have variance 1."""


SPARE = 8
"""Numbers by which the memory for `draw_uniform` must be longer: a cipher asks for room for one more block."""


def uniform_cipher(*fields: Field) -> CipherContext:
    """The cipher whose output for zeros is the bytes of the numbers of `uniform`, one after another."""
    return Cipher(algorithms.AES(digest("uniform", *fields)), modes.CTR(bytes(16))).encryptor()


def draw_uniform(into: np.ndarray, size: int, *fields: Field) -> None:
    """Fill the first `size` numbers of `into` [size + SPARE], contiguous int16, with those of the stream of this name.

    Not yet made odd, as `uniform` has them. AES in counter mode: far faster than normal numbers, and the same on every
    machine.
    """
    drawn = into.view(np.uint8)
    drawn[: 2 * size] = 0
    uniform_cipher(*fields).update_into(drawn[: 2 * size].data, drawn.data)


def uniform(size: int, *fields: Field) -> np.ndarray:
    """`size` numbers of the stream of this name, uniform on the odd int16 values: mean 0, variance (2^30 - 1) / 3."""
    drawn = np.empty(size + SPARE, dtype="<i2")
    draw_uniform(drawn, size, *fields)
    odd = drawn[:size].astype(np.int16, copy=False)
    return np.bitwise_or(odd, 1, out=odd)
