"""What the operations of a gene turn a value into, by its type. An operation that does not fit leaves it unchanged."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from msgspec import Struct

from btard.protocol.behaviour import Context
from btard.protocol.certificate import certify
from btard.protocol.claims import admissible
from btard.protocol.config import ProtocolSettings
from btard.protocol.hashing import signed_digest
from btard.protocol.messages import (
    CLAIM_KINDS,
    EXCUSED,
    FALSE_CLAIM,
    GUILTY,
    NOBODY,
    PROBATION_KINDS,
    TOLERANT_KINDS,
    VERDICTS,
    Claim,
    Packet,
    Relayed,
    Signed,
    relay_digest,
)
from scripts.hunt.cases import Gene
from scripts.hunt.room import Room

Path = tuple[str | int, ...]
TOLERANCES = tuple(field.name for field in dataclasses.fields(ProtocolSettings) if field.name.endswith("tol"))
WORDS = tuple(sorted(CLAIM_KINDS | TOLERANT_KINDS | PROBATION_KINDS | VERDICTS))


@dataclass
class Moment:
    """Where a gene acts: whose hook, in which step, on which of the values that pass there."""

    room: Room
    ctx: Context
    gene: Gene
    what: Any
    """The place in the room's notes."""
    args: Mapping[str, Any]
    """The hook's arguments except the value."""
    rng: np.random.Generator
    chosen: frozenset[int] = frozenset()
    """The recipients at which the gene aims."""

    @property
    def me(self) -> int:
        return self.ctx.peer

    def honest(self, path: Path = ()) -> list[Any]:
        """What honest peers have put here, by peer."""
        noted = self.room.noted(self.ctx.step, self.what)
        return [x for i in sorted(noted) if i not in self.room.members and (x := follow(noted[i], path)) is not None]

    def fellows(self, path: Path = ()) -> list[Any]:
        noted = self.room.noted(self.ctx.step, self.what)
        others = [i for i in sorted(noted) if i in self.room.members and i != self.me]
        return [x for i in others if (x := follow(noted[i], path)) is not None]

    def earlier(self, path: Path = (), *, life: bool) -> list[Any]:
        """What any peer, this one first, put here in the step before, or in this step in a former life."""
        if life:
            found = [self.room.noted(self.ctx.step, self.what, life=old) for old in range(self.room.life)]
        else:
            found = [self.room.noted(self.ctx.step - 1, self.what)]
        values = [noted[i] for noted in found for i in sorted(noted, key=lambda i: (i != self.me, i))]
        return [x for value in values if (x := follow(value, path)) is not None]

    def rows(self) -> list[torch.Tensor]:
        """The honest gradients of the step, or their parts where a part is concerned."""
        noted, part, record = self.room.noted(self.ctx.step, ("gradient",)), self.args.get("part"), self.ctx.record
        rows = [noted[i] for i in sorted(noted) if i not in self.room.members]
        if part is None:
            return rows
        return [record.cut.view(row, part) for row in rows] if record.split is not None else []

    def one(self, values: Sequence[Any]) -> Any:
        return values[int(self.rng.integers(len(values)))] if values else None


def follow(value: Any, path: Path) -> Any:
    """The item of `value` at `path`; None if there is nothing."""
    for name in path:
        if isinstance(name, int):
            if not isinstance(value, Sequence) or not 0 <= name < len(value):
                return None
            value = value[name]
        else:
            value = getattr(value, name, None)
    return value


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
        return _tensor(value, at)
    if isinstance(value, Struct) or dataclasses.is_dataclass(value):
        return _struct(value, at, path)
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return _number(value, at, path)
    if isinstance(value, int):
        return _count(value, at)
    if isinstance(value, bytes):
        return _bytes(value, at)
    if isinstance(value, str):
        return _word(value, at)
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


# Numbers.


def _factor(at: Moment) -> float:
    """A change just inside or outside one of the tolerances."""
    config = at.ctx.config
    names = [name for name in TOLERANCES if config is not None and getattr(config, name) is not None]
    tolerance = float(getattr(config, str(at.rng.choice(names))))
    near = 0.9 if at.gene.how == "inside" else 1.1
    return near * tolerance * float(at.rng.choice([1, 2, 4, 6, 10, 12, 20, 60]))


def _number(value: float, at: Moment, path: Path) -> float:
    how, sign = at.gene.how, 1.0 if at.rng.random() < 0.5 else -1.0
    if how == "balance":
        lead = min((i for i in at.room.members if i in at.ctx.record.workers), default=at.me)
        return -math.fsum(x for x in at.honest(path) if math.isfinite(x)) if at.me == lead else 0.0
    changed = {
        "zero": lambda: 0.0,
        "negative": lambda: -value,
        "nan": lambda: math.nan,
        "inf": lambda: sign * math.inf,
        "huge": lambda: sign * float(at.rng.choice([1e20, 1e30, 3e38, 1e300])),
        "denormal": lambda: sign * float(at.rng.choice([5e-324, 1e-45, 1e-39])),
        "ulp": lambda: math.nextafter(value, sign * math.inf),
        "inside": lambda: value * (1 + sign * _factor(at)),
        "outside": lambda: value * (1 + sign * _factor(at)),
        "scaled": lambda: value * at.gene.size,
    }.get(how)
    return value if changed is None else changed()


def _count(value: int, at: Moment) -> int:
    changed = {
        "zero": 0,
        "plus": value + 1,
        "minus": value - 1,
        "huge": int(at.rng.choice([255, 2**31 - 1, 2**40])),
        "nobody": NOBODY,
        "random": int(at.rng.integers(0, len(at.ctx.active) + 1)),
    }
    return changed.get(at.gene.how, value)


def _bytes(value: bytes, at: Moment) -> bytes:
    if at.gene.how == "zero":
        return bytes(len(value))
    if at.gene.how == "short":
        return value[: len(value) // 2]
    if at.gene.how == "flip" and value:
        return bytes([value[0] ^ 1]) + value[1:]
    return value


def _word(value: str, at: Moment) -> str:
    claim = at.args.get("claim")
    against = isinstance(claim, Claim) and claim.accused not in at.room.members
    return {
        "word": str(at.rng.choice(WORDS)),
        "favour": GUILTY if against else FALSE_CLAIM,
        "convict": GUILTY,
        "acquit": FALSE_CLAIM,
        "abstain": EXCUSED,
    }.get(at.gene.how, value)


# Tensors.


def _tensor(value: torch.Tensor, at: Moment) -> torch.Tensor | bytes:
    how, size = at.gene.how, at.gene.size
    rows, colluders = at.rows(), max(1, len(at.room.members & set(at.ctx.active)))
    fits = bool(rows) and all(row.shape == value.shape for row in rows)
    entry = int(at.rng.integers(value.numel())) if value.numel() else 0
    noise = torch.from_numpy(at.rng.standard_normal(value.numel()).astype(np.float32)).view(value.shape)
    if how == "balance" and fits:
        return -size * torch.stack(rows).sum(0) / colluders
    if how == "mean" and fits:
        return torch.stack(rows).mean(0) * size
    if how == "average" and fits:  # as near to the others as the average one, in a direction of its own
        return torch.stack(rows).mean(0) + size * noise * torch.stack(rows).std(0, correction=0)
    if how in ("inside", "outside"):
        length = float(noise.norm()) or 1.0
        return value + noise * (_factor(at) * float(value.norm()) / length)
    if how == "ulp":
        there = torch.full_like(value, math.inf)
        moved = torch.nextafter(value, there)
        if at.rng.random() < 0.5:
            return moved
        kept = value.clone()
        kept.view(-1)[entry] = moved.view(-1)[entry]
        return kept
    if how == "one_entry":
        kept = value.clone()
        kept.view(-1)[entry] = size
        return kept
    if how == "denormals":
        kept = value.clone().view(-1)
        zeros = (kept == 0).nonzero().view(-1)[: int(at.rng.integers(1, 4))]
        kept[zeros] = float(at.rng.choice([1.4e-45, 2.8e-45, 4.2e-45, 1e-40]))
        return kept.view(value.shape)
    changed: dict[str, Callable[[], torch.Tensor | bytes]] = {
        "zero": lambda: torch.zeros_like(value),
        "negative": lambda: -size * value,
        "nan": lambda: torch.full_like(value, math.nan),
        "inf": lambda: torch.full_like(value, math.inf),
        "huge": lambda: torch.full_like(value, size),
        "denormal": lambda: torch.full_like(value, 1.4e-45),
        "scaled": lambda: value * size,
        "noise": lambda: value + size * noise,
        "shape": lambda: value[:-1],
        "dtype": lambda: value.double(),
        "bytes": lambda: bytes(value.numel()),
    }
    return changed[how]() if how in changed else value


# What holds other values.


def _struct(value: Any, at: Moment, path: Path) -> Any:
    """One field changes, by an operation that fits it."""
    names = list(getattr(value, "__struct_fields__", None) or [f.name for f in dataclasses.fields(value)])
    name = str(at.rng.choice(names))
    held = value.signature if isinstance(value, Packet) and name == "signed" else getattr(value, name)
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
    torch.Tensor: ("zero", "nan", "huge", "ulp", "one_entry", "denormals", "shape", "dtype", "outside"),
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
    if isinstance(value, tuple) and value and at.rng.random() < 0.6:
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


def claims(at: Moment) -> list[Claim]:
    """Accusations: `claim` is one that an honest peer might have, `claims` are all of a kind; `wild` is any."""
    record, last = at.ctx.record, at.ctx.last
    seat = at.room.peers.get(at.me)
    kinds = sorted(CLAIM_KINDS | TOLERANT_KINDS | PROBATION_KINDS)
    steps = [record.step] + ([last.step] if last is not None else [])
    if at.gene.how == "wild":
        part = int(at.rng.integers(-1, len(at.room.owners(at.ctx))))
        accused = int(at.rng.choice(at.ctx.active))
        return [Claim(int(at.rng.choice(steps)), accused, str(at.rng.choice(kinds)), part)]
    attempt = int(any(phase.startswith("accuse/0") for phase in record.heard))
    found = [
        claim
        for step in steps
        for kind in kinds
        for accused in (*at.ctx.active, *record.newcomers)
        if accused not in at.room.members
        for part in (NOBODY, *range(len(at.room.owners(at.ctx))))
        for claim in (Claim(step, accused, kind, part),)
        if seat is not None and admissible(seat, record, at.me, claim, attempt)
    ]
    if at.gene.how == "claims" and found:
        raised = str(at.rng.choice(sorted({claim.kind for claim in found})))
        return [claim for claim in found if claim.kind == raised]
    if not found:
        return found
    return [found[int(at.rng.integers(len(found)))]]


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
        return _reveal(value, at)
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


def _reveal(value: Mapping[int, Sequence[Any]], at: Moment) -> Mapping[int, Sequence[Any]]:
    """Hand out what fellows have kept back, or what they said in a former life, with all the signatures we have.

    Or a certificate of what this peer heard, if it has one.
    """
    ctx, phase, round = at.ctx, at.args.get("phase"), at.args.get("round")
    if not isinstance(phase, str) or not isinstance(round, int) or ctx.config is None:
        return value
    hidden: list[Signed] = list(at.room.hidden.get((at.room.life, ctx.step, phase), {}).values())
    for old in range(at.room.life):
        hidden += [m for m in at.room.noted(ctx.step, ("signed", phase), life=old).values() if isinstance(m, Signed)]
    keys = {i: at.room.keys[i] for i in sorted(at.room.keys) if i in ctx.record.remaining}
    if at.gene.pick % 4 >= 2 and ctx.identity is not None and ctx.record.vouches:
        signed_by = [i for i in sorted(ctx.record.vouches) if i in ctx.record.members]
        hidden.append(certify(ctx.record, phase, ctx.peer, ctx.identity, signed_by))
    items = []
    for message in hidden:
        signers = [i for i in keys if i != message.sender]
        when, last = (ctx.config.rounds, 1, len(signers))[at.gene.pick % 3], ctx.config.rounds
        if message.phase.endswith("/certificate"):
            when, last = when + 1, last + 1
        if round != max(1, min(when, last)) or not signers:
            continue
        signed = relay_digest(message.digest(ctx.record.context))
        items.append(Relayed(message, tuple((i, keys[i].sign(signed)) for i in signers)))
    return {**value, **{to: (*value.get(to, ()), *items) for to in at.chosen}} if items else value
