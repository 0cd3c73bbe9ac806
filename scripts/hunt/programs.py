"""The Byzantine peer that a program describes, and the honest peer, which lets colluders see what it does."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import msgspec
import numpy as np

from btard.attacks.base import without_fellows
from btard.attacks.speech import signed_bytes
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.hashing import stream
from btard.protocol.hearing import AGAIN
from btard.protocol.messages import Claim
from btard.protocol.signed import Signed
from scripts.hunt.alter import altered, any_change
from scripts.hunt.cases import Gene, Program
from scripts.hunt.moment import Moment
from scripts.hunt.room import RECIPIENTS, Room

COMPARE = "hook compare"
"""The site of what a peer says that it heard."""

MOMENTS: dict[str, Callable[[Room, Context], bool]] = {
    "always": lambda room, ctx: True,
    "checked": lambda room, ctx: ctx.peer in ctx.assignments.values(),
    "unchecked": lambda room, ctx: ctx.peer not in ctx.assignments.values(),
    "validator": lambda room, ctx: ctx.peer in ctx.assignments,
    "fellow_validates": lambda room, ctx: bool(room.members & set(ctx.assignments)),
    "fellow_checks_me": lambda room, ctx: any(
        target == ctx.peer and validator in room.members for validator, target in ctx.assignments.items()
    ),
    "strong": lambda room, ctx: 2 * len(room.members & set(room.owners(ctx))) >= len(set(room.owners(ctx))),
    "somebody_away": lambda room, ctx: ctx.record.here is not None and ctx.record.here != ctx.active,
    "was_away": lambda room, ctx: ctx.last is not None and ctx.last.here != ctx.last.active,
    "first_life": lambda room, ctx: room.life == 0,
    "second_life": lambda room, ctx: room.life > 0,
    "worker": lambda room, ctx: ctx.peer not in ctx.assignments,
}
"""Conditions on the current step, each by what is public in it."""

PLACES: dict[str, Callable[[Room, Context, int, int], bool]] = {
    "all": lambda room, ctx, part, pick: True,
    "one": lambda room, ctx, part, pick: part == pick % max(1, len(room.owners(ctx))),
    "mine": lambda room, ctx, part, pick: room.owners(ctx)[part] == ctx.peer,
    "fellows": lambda room, ctx, part, pick: room.owners(ctx)[part] in room.members,
    "honest": lambda room, ctx, part, pick: room.owners(ctx)[part] not in room.members,
    "half": lambda room, ctx, part, pick: part % 2 == pick % 2,
}
"""Which parts the gene concerns."""


@cache
def hooks() -> Mapping[str, tuple[str, ...]]:
    """The hooks of `Behaviour` that get a peer's context, except `say`, and their other arguments."""
    found = {}
    for name, hook in inspect.getmembers(Behaviour, inspect.isfunction):
        names = tuple(inspect.signature(hook).parameters)
        if not name.startswith("_") and names[1:2] == ("ctx",) and name not in ("acts", "say", "compare"):
            found[name] = names[2:]
    return found


def place_of(name: str, args: Mapping[str, Any]) -> tuple[Any, ...]:
    """The name of a hook's call in the room's notes, independent of caller and recipient."""
    small = [value for key, value in args.items() if key != "recipient" and isinstance(value, int | str | Claim)]
    return (name, *small)


def in_phase(gene: Gene, phase: str) -> bool:
    """Whether the gene is for this phase; "" is an unknown one."""
    if not gene.phase or not phase:
        return True
    if gene.phase.startswith("/"):
        return f"{gene.phase}/" in f"{phase}/"
    return gene.phase in (phase, phase.partition("/")[0], phase.removesuffix(AGAIN))


def round_of(name: str, ctx: Any) -> str:
    """The phase of a hook that does not know it: accusations have two rounds."""
    if name != "accuse":
        return ""
    return f"accuse/{int(any(phase.startswith('accuse/0') for phase in ctx.record.heard))}"


class Noted(Behaviour):
    """Every hook goes through `_passed`: what honest code put there, and what comes of it."""

    def __init__(self, room: Room) -> None:
        self.room = room

    def acts(self, ctx: Any) -> bool:
        return True

    def _passed(self, name: str, ctx: Any, args: Mapping[str, Any], value: Any) -> Any:
        raise NotImplementedError


def _hooked(name: str, names: tuple[str, ...]) -> Any:
    honest = getattr(Behaviour, name)

    def act(self: Noted, ctx: Any, *given: Any) -> Any:
        value = honest(self, ctx, *given)
        args = {key: x for key, x in zip(names, given, strict=True) if x is not value}
        return self._passed(name, ctx, args, value)

    return act


for _name, _names in hooks().items():
    setattr(Noted, _name, _hooked(_name, _names))


class Honest(Noted):
    """An honest peer: its actions are recorded before colluders act.

    `away`: steps in which nobody hears it until it asks for what it lacks; `drops`: step -> the phase from which on
    nobody hears it.
    """

    def __init__(self, room: Room, away: frozenset[int] = frozenset(), drops: Mapping[int, str] | None = None) -> None:
        super().__init__(room)
        self.away, self.drops = away, drops or {}
        self._gone: tuple[int, int] | None = None
        self._mute = False

    def missed(self, step: int) -> bool:
        """Whether it was away in `step`, or fell silent in it."""
        return step in self.away or self._gone == (self.room.life, step)

    @property
    def relays_news(self) -> bool:
        return not self._mute  # its hook says nothing else than an honest peer's

    def _silent(self, ctx: Any, phase: str) -> bool:
        if self.drops.get(ctx.step) == phase:
            self._gone = (self.room.life, ctx.step)
        return self.missed(ctx.step)

    def _passed(self, name: str, ctx: Any, args: Mapping[str, Any], value: Any) -> Any:
        self.room.note(ctx, place_of(name, args), value)
        if name in ("dispatch", "relay") and self._silent(ctx, args["phase"]):
            return value if args["phase"] == "ask" and ctx.step in self.away else {}
        return value

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if payload is not None:
            self.room.note(ctx, ("say", phase), payload)
            self.room.note(ctx, ("signed", phase), message)
        self._mute = self._silent(ctx, phase)
        return (None if self._mute else message), {}

    def compare(self, ctx: Context, phase: str, view: bytes) -> Any:
        return (None if self._mute else view), {}


class Programmed(Noted):
    """A Byzantine peer that follows the genes of a program: colluder `index` of `count`."""

    byzantine = True

    def __init__(self, room: Room, program: Program, index: int, count: int) -> None:
        super().__init__(room)
        self.program = program
        self.genes: dict[str, list[Gene]] = {}
        for gene in program.genes:
            if gene.who == -1 or gene.who % count == index:
                self.genes.setdefault(gene.site, []).append(gene)

    def _fits(self, gene: Gene, ctx: Any) -> bool:
        if not gene.start <= ctx.step < gene.stop or (ctx.step - gene.start) % gene.every:
            return False
        return isinstance(ctx, Context) and MOMENTS[gene.when](self.room, ctx)

    def _moment(self, gene: Gene, ctx: Any, what: Any, args: Mapping[str, Any]) -> Moment:
        honest = [p for p in ctx.record.remaining if p not in self.room.members]
        chosen = frozenset(RECIPIENTS[gene.to](honest, gene.pick))
        return Moment(self.room, ctx, gene, what, args, self._stream(gene, ctx), chosen)

    def _stream(self, gene: Gene, ctx: Any) -> np.random.Generator:
        return stream("hunt gene", gene.site, gene.how, gene.pick, ctx.step)

    def _passed(self, name: str, ctx: Any, args: Mapping[str, Any], value: Any) -> Any:
        what, honest = place_of(name, args), value
        if ctx.identity is not None:
            self.room.keys[ctx.peer] = ctx.identity
        for gene in self.genes.get(f"hook {name}", ()):
            if not self._fits(gene, ctx):
                continue
            if not in_phase(gene, args.get("phase") or round_of(name, ctx)):
                continue
            at = self._moment(gene, ctx, what, args)
            if "recipient" in args and args["recipient"] not in at.chosen:
                continue
            if "part" in args and not self._place(gene, ctx, args["part"]):
                continue
            value = altered(value, at, places=lambda part, count, gene=gene: self._place(gene, ctx, part))
        if name == "request" and not (0 <= ctx.step - value.step <= self.lookback and value.step >= 0):
            value = honest  # nobody has the parameters
        if name == "accuse" and self.program.loyal and value is not None:
            value = without_fellows(value, frozenset(self.room.members))
        self.room.note(ctx, what, value)
        return value

    def _place(self, gene: Gene, ctx: Context, part: int) -> bool:
        owners = self.room.owners(ctx)
        return 0 <= part < len(owners) and PLACES[gene.where](self.room, ctx, part, gene.pick)

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if ctx.identity is not None:
            self.room.keys[ctx.peer] = ctx.identity
        said = self.room.noted(ctx.step, ("say", phase))
        like = payload if payload is not None else next(iter(said.values()), None)
        faces: dict[int, Signed | None] = {}
        for gene in self._about(type(like).__name__ if like is not None else ""):
            if not self._fits(gene, ctx) or not in_phase(gene, phase):
                continue
            at = self._moment(gene, ctx, ("say", phase), {"phase": phase})
            changed, signed = self._message(gene, at, phase, payload, message, sign)
            if signed is message:
                continue
            if gene.how == "late":
                hidden = signed if gene.pick % 2 else message
                if hidden is not None:
                    self.room.hidden.setdefault((self.room.life, ctx.step, phase), {})[ctx.peer] = hidden
                message = message if gene.pick % 2 else None
            elif gene.to == "all" and gene.how != "two_faces":
                payload, message = changed, signed  # the next gene goes on from here
            else:
                faces |= dict.fromkeys(at.chosen, signed)
        if payload is not None:
            self.room.note(ctx, ("say", phase), payload)
            self.room.note(ctx, ("signed", phase), message)
        return message, faces

    def compare(self, ctx: Context, phase: str, view: bytes) -> Any:
        said: bytes | None = view
        faces: dict[int, bytes | None] = {}
        for gene in self.genes.get(COMPARE, ()):
            if not self._fits(gene, ctx) or not in_phase(gene, phase):
                continue
            at = self._moment(gene, ctx, ("compare", phase), {"phase": phase})
            changed = altered(view, at)
            if gene.to == "all":
                said = changed
            else:
                faces |= dict.fromkeys(at.chosen, changed)
        return said, faces

    def _about(self, kind: str) -> list[Gene]:
        """The genes for broadcasts of this kind, and for its fields, in the program's order."""
        return [g for g in self.program.genes if g.site.partition(".")[0] == kind and g in self.genes.get(g.site, ())]

    def _message(
        self, gene: Gene, at: Moment, phase: str, payload: Any, message: Signed | None, sign: Any
    ) -> tuple[Any, Signed | None]:
        """What is said instead of `payload` and `message`; these themselves if the gene has nothing to say here."""
        field, how = gene.site.partition(".")[2], gene.how
        said = payload
        if how == "omit":
            return payload, None
        if how == "garbage":
            return payload, signed_bytes(at.ctx, phase, bytes(at.rng.integers(0, 256, 24, dtype=np.uint8)))
        if how == "oversize":
            return payload, signed_bytes(at.ctx, phase, bytes(2**20))
        if how == "forged" and message is not None:
            other = at.one(sorted(at.chosen) or [at.me])
            return payload, signed_bytes(at.ctx, phase, message.payload, sender=other)
        if field and payload is not None:
            places = lambda part, count: self._place(gene, at.ctx, part)  # noqa: E731
            new = altered(getattr(payload, field), at, (field,), places)
            said = msgspec.structs.replace(payload, **{field: new})
        elif not field and how in ("last", "life"):
            old = dataclasses.replace(at, what=("signed", phase)).earlier(life=how == "life")
            found = at.one([m for m in old if isinstance(m, Signed)])
            if found is not None and gene.pick % 2:
                return payload, found
            said = at.one(at.earlier(life=how == "life"))
        elif not field and how in ("other", "fellow"):
            said = at.one(at.honest() if how == "other" else at.fellows())
        elif payload is not None and how in ("two_faces", "late"):
            said = any_change(payload, at, ())
        if said is None or said is payload:
            return payload, message
        return said, sign(said)
