"""The wire format: msgpack with explicit schemas. Sizes are checked before anything is decoded; no pickle."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgpack
from msgspec import Meta

T = TypeVar("T")

Number = Annotated[int, Meta(ge=-1, lt=2**31)]
"""A peer, a part, a step or a count."""


class Malformed(ValueError):
    """Bytes or values from a peer that do not have the agreed form: what was expected, what came."""


def pack(value: Any) -> bytes:
    """msgpack bytes of nested tuples of str, int, float and bytes."""
    result: bytes = msgpack.packb(value, use_bin_type=True)
    return result


MAX_DEPTH = 4
"""Lists within lists: no message needs more."""

_FIXED = {0xC0: 1, 0xC2: 1, 0xC3: 1, 0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}
_FIXED |= {0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}
"""msgpack's tags of nil, booleans, floats and integers: how many bytes they take."""
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Tags of binary and text: how many bytes their length takes."""
_LISTS = {0xDC: 2, 0xDD: 4}


def unpack(payload: bytes, *, max_bytes: int, what: str) -> Any:
    """The nested lists in `payload`; Malformed if it is longer than `max_bytes` (checked first) or not msgpack.

    Allocates at most 100 times the length of the payload: lists are counted before they are made.
    """
    if not isinstance(payload, bytes):
        raise Malformed(f"{what}: expected bytes, got {type(payload).__name__}")
    if len(payload) > max_bytes:
        raise Malformed(f"{what}: {len(payload)} bytes, at most {max_bytes} are allowed")
    _scan(payload, what)
    try:
        return msgpack.unpackb(payload, raw=False, use_list=True)
    except Exception as error:  # what is left, such as text that is not UTF-8
        raise Malformed(f"{what}: not valid msgpack ({type(error).__name__}: {error})") from None


def _scan(data: bytes, what: str) -> None:
    """Malformed unless `data` is one complete value of lists, numbers, text and bytes, at most MAX_DEPTH lists deep.

    msgpack makes a list as long as its header says before it looks for the items, and headers cost five bytes.
    """
    at, end = 0, len(data)
    missing = [1]  # items still to come, for every list that is open
    while missing:
        if missing[-1] == 0:
            missing.pop()
            continue
        missing[-1] -= 1
        if at >= end:
            raise Malformed(f"{what}: not valid msgpack (cut short)")
        tag = data[at]
        count = -1
        if tag <= 0x7F or tag >= 0xE0:
            at += 1
        elif 0x90 <= tag <= 0x9F:
            at, count = at + 1, tag & 0x0F
        elif 0xA0 <= tag <= 0xBF:
            at += 1 + (tag & 0x1F)
        elif tag in _FIXED:
            at += _FIXED[tag]
        elif tag in _SIZED:
            at += 1 + _SIZED[tag] + int.from_bytes(data[at + 1 : at + 1 + _SIZED[tag]], "big")
        elif tag in _LISTS:
            count = int.from_bytes(data[at + 1 : at + 1 + _LISTS[tag]], "big")
            at += 1 + _LISTS[tag]
        else:
            raise Malformed(f"{what}: not valid msgpack here (tag 0x{tag:02x}: a map, an extension or nothing)")
        if count >= 0:
            if count > end - at:
                raise Malformed(f"{what}: not valid msgpack (a list of {count} items in {max(0, end - at)} bytes)")
            if len(missing) > MAX_DEPTH:
                raise Malformed(f"{what}: lists nested more than {MAX_DEPTH} deep")
            missing.append(count)
    if at != end:
        raise Malformed(f"{what}: not valid msgpack ({'cut short' if at > end else f'{end - at} bytes too many'})")


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
