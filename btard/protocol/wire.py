"""The wire format: msgpack with explicit schemas. Sizes are checked before anything is decoded; no pickle."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgpack

T = TypeVar("T")


class Malformed(ValueError):
    """Bytes or values from a peer that do not have the agreed form: what was expected, what came."""


def pack(value: Any) -> bytes:
    """msgpack bytes of nested tuples of str, int, float and bytes."""
    result: bytes = msgpack.packb(value, use_bin_type=True)
    return result


def unpack(payload: bytes, *, max_bytes: int, what: str) -> Any:
    """The nested lists in `payload`; Malformed if it is longer than `max_bytes` (checked first) or not msgpack."""
    if not isinstance(payload, bytes):
        raise Malformed(f"{what}: expected bytes, got {type(payload).__name__}")
    if len(payload) > max_bytes:
        raise Malformed(f"{what}: {len(payload)} bytes, at most {max_bytes} are allowed")
    try:
        return msgpack.unpackb(
            payload,
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_bin_len=max_bytes,
            max_str_len=min(64, max_bytes),
            max_array_len=max_bytes,
            max_map_len=0,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises a dozen unrelated types, all of them "this is not a message"
        raise Malformed(f"{what}: not valid msgpack ({type(error).__name__}: {error})") from None


def check_list(value: Any, what: str, item: Callable[[Any, str], T], *, max_len: int) -> tuple[T, ...]:
    if not isinstance(value, list):
        raise Malformed(f"{what}: expected a list, got {type(value).__name__}")
    if len(value) > max_len:
        raise Malformed(f"{what}: {len(value)} items, at most {max_len} are allowed")
    return tuple(item(entry, f"{what}[{index}]") for index, entry in enumerate(value))


def check_fields(value: Any, what: str, count: int) -> list[Any]:
    if not isinstance(value, list) or len(value) != count:
        raise Malformed(f"{what}: expected a list of {count} fields, got {type(value).__name__}")
    return value


def check_int(value: Any, what: str) -> int:
    # bool is an int to isinstance, and 2**63 fits msgpack: neither is a peer, a part or a step.
    if type(value) is not int or not -1 <= value < 2**31:
        raise Malformed(f"{what}: expected an integer in [-1, 2^31), got {value!r:.40}")
    return value


def check_float(value: Any, what: str) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise Malformed(f"{what}: expected a finite float, got {value!r:.40}")
    return value


def check_digest(value: Any, what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != 32:
        raise Malformed(f"{what}: expected 32 bytes, got {type(value).__name__}")
    return value


def check_word(value: Any, what: str, words: frozenset[str]) -> str:
    if not isinstance(value, str) or value not in words:
        raise Malformed(f"{what}: expected one of {', '.join(sorted(words))}, got {value!r:.40}")
    return value
