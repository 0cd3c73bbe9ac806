"""How values are encoded in the files of a recorded run, and their strict decoding: anything else is Malformed."""

from __future__ import annotations

from typing import Any

import torch

from btard.protocol.wire import Malformed

TENSOR_DTYPES = {
    str(dtype): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}
"""What a packet's body may be; anything else that a hostile peer sends is kept as bytes."""


def check_hex(value: Any, what: str) -> bytes:
    if not isinstance(value, str) or len(value) > 2**10:
        raise Malformed(f"{what}: expected hexadecimal digits")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise Malformed(f"{what}: expected hexadecimal digits, got {value!r:.40}") from None


def check_object(value: Any, what: str, names: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or (names is not None and set(value) != names):
        raise Malformed(f"{what}: expected an object{f' with {sorted(names)}' if names else ''}")
    return value


def check_array(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise Malformed(f"{what}: expected a list, got {type(value).__name__}")
    return value


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy in the CPU's memory."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def flattened(body: torch.Tensor | bytes) -> tuple[str, tuple[int, ...], torch.Tensor]:
    """(dtype, shape, bytes [n]) of a packet's body, whatever its sender put into it."""
    if isinstance(body, bytes):
        return "bytes", (len(body),), torch.frombuffer(bytearray(body), dtype=torch.uint8) if body else torch.empty(0)
    host = to_host(body)
    return str(host.dtype), tuple(host.shape), host.reshape(-1).view(torch.uint8) if host.numel() else torch.empty(0)


def unflattened(raw: torch.Tensor, dtype: str, shape: tuple[int, ...]) -> torch.Tensor | bytes:
    """The body of which `flattened` made `dtype`, `shape` and `raw`; Malformed if there is no such body."""
    raw = raw.reshape(-1) if raw.numel() else torch.empty(0, dtype=torch.uint8)
    if raw.dtype == torch.uint8 and dtype == "bytes":
        return raw.numpy().tobytes()
    if raw.dtype != torch.uint8 or dtype not in TENSOR_DTYPES:
        raise Malformed(f"packet: a body of {dtype!r:.40} is not known here")
    try:
        return raw.view(TENSOR_DTYPES[dtype]).reshape(shape)
    except RuntimeError:
        raise Malformed(f"packet: {raw.numel()} bytes are no {dtype} of shape {list(shape)!r:.80}") from None
