"""What the operations of a gene turn a value into, by its type. An operation that does not fit leaves it unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import torch
from msgspec import Struct

from btard.protocol.hashing import signed_digest
from btard.protocol.signed import Packet, Signed
from scripts.hunt.additions import claims, revealed
from scripts.hunt.moment import Moment, Path
from scripts.hunt.values import altered_bytes, altered_count, altered_number, altered_tensor, altered_word


def altered(value: Any, at: Moment, path: Path = (), places: Any = None) -> Any:
    """`value`, the item at `path` of what passes here, as the gene changes it.

    `places`: (part, number of parts) -> whether the gene is for it.
    """
    how = at.gene.how
    if how == "omit":
        return value if path else None
    if how in ("other", "fellow", "last", "life"):
        known = {
            "other": lambda: at.honest(path),
            "fellow": lambda: at.fellows(path),
            "last": lambda: at.earlier(path, life=False),
            "life": lambda: at.earlier(path, life=True),
        }[how]()
        if not known and isinstance(value, torch.Tensor) and how == "other":
            known = at.rows()
        found = at.one(known)
        return found if found is not None and alike(found, value) else value
    if isinstance(value, torch.Tensor):
        return altered_tensor(value, at)
    if isinstance(value, Struct) or dataclasses.is_dataclass(value):
        return _struct(value, at, path)
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return altered_number(value, at, path)
    if isinstance(value, int):
        return altered_count(value, at)
    if isinstance(value, bytes):
        return altered_bytes(value, at)
    if isinstance(value, str):
        return altered_word(value, at)
    if isinstance(value, Mapping):
        return _mapping(value, at)
    if isinstance(value, tuple | list):
        return _tuple(tuple(value), at, path, places)
    return value


def alike(one: Any, other: Any) -> bool:
    """Whether one may replace the other."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.shape == other.shape
    return other is None or type(one) is type(other)


def _struct(value: Any, at: Moment, path: Path) -> Any:
    """One field changes, by an operation that fits it."""
    names = list(getattr(value, "__struct_fields__", None) or [f.name for f in dataclasses.fields(value)])
    name = str(at.rng.choice(names))
    held = value.signature if isinstance(value, Packet | Signed) and name == "signed" else getattr(value, name)
    changed = any_change(held, at, (*path, name))
    if not alike(changed, held):
        return value
    made = msgspec.structs.replace if isinstance(value, Struct) else dataclasses.replace
    made_of = made(value, **{name: changed})
    if isinstance(value, Packet) and name == "body" and at.ctx.identity is not None and at.rng.random() < 0.7:
        commitments = at.ctx.commitments
        if commitments is not None:
            hashed = commitments.of_packet(made_of)
            made_of = msgspec.structs.replace(
                made_of, signed=at.ctx.identity.sign(signed_digest("packet", at.ctx.record.context, hashed))
            )
    return made_of


ANY = {
    torch.Tensor: ("zero", "nan", "huge", "ulp", "one_entry", "denormals", "shape", "vast", "dtype", "outside"),
    float: ("zero", "negative", "nan", "huge", "ulp", "outside", "inside", "scaled", "balance"),
    int: ("zero", "plus", "minus", "huge", "nobody", "random"),
    bytes: ("zero", "flip", "short"),
    str: ("word",),
    tuple: ("drop", "repeat", "empty", "reverse"),
}
"""Operations that are tried if a gene leaves it open."""


def any_change(value: Any, at: Moment, path: Path) -> Any:
    """`value` with some operation that fits its type."""
    ways = next((ways for kind, ways in ANY.items() if isinstance(value, kind)), ())
    pair = isinstance(value, tuple) and len({type(item) for item in value}) > 1  # it has no other form on a wire
    if isinstance(value, tuple) and value and (pair or at.rng.random() < 0.6):
        index = int(at.rng.integers(len(value)))
        return (*value[:index], any_change(value[index], at, (*path, index)), *value[index + 1 :])
    if isinstance(value, Struct):
        return _struct(value, at, path)
    if not ways:
        return value
    gene = msgspec.structs.replace(at.gene, how=str(at.rng.choice(ways)))
    return altered(value, dataclasses.replace(at, gene=gene), path)


def _tuple(value: tuple[Any, ...], at: Moment, path: Path, places: Any) -> tuple[Any, ...]:
    how = at.gene.how
    index = int(at.rng.integers(len(value))) if value else 0
    if how == "empty" or how == "quiet":
        return ()
    if how == "drop":
        return (*value[:index], *value[index + 1 :])
    if how == "repeat":
        return (*value[: index + 1], *value[index : index + 1], *value[index + 1 :])
    if how == "reverse":
        return value[::-1]
    if how == "add":
        numbers = path[-1:] in (("missing",), ("lacking",), ("pieces",), ("senders",))
        if numbers or (value and isinstance(value[0], int)):
            return tuple(sorted({*value, int(at.rng.integers(0, len(at.ctx.active)))}))
        more = [x for other in (*at.honest(path), *at.earlier(path, life=False)) for x in other]
        found = at.one(more)
        return value if found is None else (*value, found)
    if how in ("claim", "claims", "wild"):
        return tuple(sorted({*value, *claims(at)}))
    if not value:
        return value
    numbered = len(value) == len(at.room.owners(at.ctx))
    if numbered and places is not None:
        which = [i for i in range(len(value)) if places(i, len(value))]
    elif at.gene.where in ("one", "mine"):
        which = [index]
    else:
        which = list(range(len(value)))
    changed = list(value)
    for i in which:
        new = altered(value[i], at, (*path, i), places=None)
        if alike(new, value[i]) and new is not None:
            changed[i] = new
    return tuple(changed)


def _mapping(value: Mapping[int, Sequence[Any]], at: Moment) -> Mapping[int, Sequence[Any]]:
    """What goes to each recipient; only the gene's recipients are affected."""
    how, chosen = at.gene.how, at.chosen
    if how == "nothing":
        return {to: items for to, items in value.items() if to not in chosen}
    if how == "replay":
        old = [items for noted in (at.earlier(life=False), at.earlier(life=True), at.honest()) for items in noted]
        items = [item for sent in old if isinstance(sent, Mapping) for of in sent.values() for item in of][:40]
        return {**value, **{to: (*value.get(to, ()), *items) for to in chosen}} if items else value
    if how == "reveal":
        return revealed(value, at)
    if how == "swap":
        order = sorted(value)
        return {to: value[order[(i + 1) % len(order)]] for i, to in enumerate(order)}
    if how == "tampered":
        found = dict(value)
        for to in chosen & set(value):
            items = list(value[to])
            if items:
                index = int(at.rng.integers(len(items)))
                items[index] = _struct(items[index], at, ())
                found[to] = tuple(items)
        return found
    return value
