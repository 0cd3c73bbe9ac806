"""Where a gene acts, and what passed there before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from btard.protocol.behaviour import Context
from scripts.hunt.cases import Gene
from scripts.hunt.room import Room

Path = tuple[str | int, ...]


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
