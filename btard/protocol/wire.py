"""The wire format: MessagePack of declared types. Sizes are checked before anything is decoded; no pickle."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

T = TypeVar("T")

Number = Annotated[int, Meta(ge=-1, lt=2**31)]
"""A peer, a part, a step or a count."""
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]

MAX_DEPTH = 4
"""Depth of nested lists: no value without a declared type has more."""


def one_of(words: Collection[str]) -> Meta:
    return Meta(pattern=rf"^({'|'.join(sorted(words))})\Z")


class Malformed(ValueError):
    """Bytes or values from a peer that do not have the agreed form: what was expected, what came."""


class Message(Struct, array_like=True, forbid_unknown_fields=True, frozen=True, gc=False):
    """On a wire this is the list of its fields; if there is only one, that field."""

    def finite(self) -> bool:
        """Whether all its floats are finite: no other number has a meaning."""
        return True


def shown(text: object, limit: int = 200) -> str:
    """Another peer's words, made fit to be printed: one line of at most `limit` characters that a terminal shows.

    All but printable ASCII is escaped, for other characters can move the cursor, hide text or not be printed at all.
    """
    escaped = "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode() for c in str(text)[: limit + 1])
    return escaped if len(escaped) <= limit else escaped[: max(0, limit - 3)] + "..."


def pack(value: Any) -> bytes:
    """MessagePack of nested tuples or lists of str, int, float and bytes."""
    return msgspec.msgpack.encode(value)


def encode(message: Message) -> bytes:
    names = message.__struct_fields__
    return pack(getattr(message, names[0]) if len(names) == 1 else message)


@lru_cache
def _decoder(form: Any) -> tuple[msgspec.msgpack.Decoder[Any], Callable[[Any], Any]]:
    """The decoder of a `form`, and what constructs one from its output."""
    if isinstance(form, type) and issubclass(form, Message) and len(form.__struct_fields__) == 1:
        return msgspec.msgpack.Decoder(msgspec.structs.fields(form)[0].type), form
    return msgspec.msgpack.Decoder(form), lambda content: content


def decode(payload: bytes, form: type[T], *, max_bytes: int, what: str) -> T:
    """The `form` in `payload`, a `Message` or a union of tagged ones; Malformed if there is none.

    It is refused unread if it is longer than `max_bytes`, and if it has not exactly the bytes that `encode` gives: no
    field is left out, no whole number stands for a float, and whatever is said has one form alone. Allocates at most
    100 times the length of the payload: msgspec makes a list while it finds its items, whatever its header says.
    """
    if not isinstance(payload, bytes):
        raise Malformed(f"{what}: expected bytes, got {type(payload).__name__}")
    if len(payload) > max_bytes:
        raise Malformed(f"{what}: {len(payload)} bytes, at most {max_bytes} are allowed")
    decoder, make = _decoder(form)  # type: ignore[arg-type]  # every type is hashable
    try:
        content = decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Malformed(f"{what}: not valid ({type(error).__name__}: {shown(error)})") from None
    if pack(content) != payload:
        raise Malformed(f"{what}: not valid (packed in another way than it must be)")
    result = make(content)
    if isinstance(result, Message) and not result.finite():
        raise Malformed(f"{what}: expected finite floats, got NaN or Inf")
    return result


def unpack(payload: bytes, *, max_bytes: int, what: str) -> Any:
    """The nested lists in `payload`, at most MAX_DEPTH deep, their items unchecked. Malformed as from `decode`."""
    value = decode(payload, object, max_bytes=max_bytes, what=what)
    _check_plain(value, what, 0)
    return value


def _check_plain(value: Any, what: str, depth: int) -> None:
    if isinstance(value, list):
        if depth == MAX_DEPTH:
            raise Malformed(f"{what}: lists nested more than {MAX_DEPTH} deep")
        for entry in value:
            _check_plain(entry, what, depth + 1)
    elif not isinstance(value, None | bool | int | float | str | bytes):
        raise Malformed(f"{what}: not valid here (a map or an extension)")


def convert(value: Any, form: type[T], what: str) -> T:
    """The `form` in JSON `value`, bytes as base64; Malformed, in a line with little of the value, if it is none.

    All fields of a `Struct` have to be there, those that have a default too.
    """
    if isinstance(form, type) and issubclass(form, Struct):
        names = form.__struct_fields__
        if not isinstance(value, dict) or set(value) != set(names):
            found = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise Malformed(f"{what}: expected the fields {', '.join(sorted(names))}, got {found!a:.200}")
    try:
        return msgspec.convert(value, form, str_keys=True)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # also text that is not UTF-8
        raise Malformed(f"{what}: {shown(error)}") from None


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
    # bool is an int to isinstance, and 2**63 fits: neither is a peer, a part or a step.
    if type(value) is not int or not -1 <= value < 2**31:
        raise Malformed(f"{what}: expected an integer in [-1, 2^31), got {value!r:.40}")
    return value


def check_digest(value: Any, what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != 32:
        raise Malformed(f"{what}: expected 32 bytes, got {type(value).__name__}")
    return value
