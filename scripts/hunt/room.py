"""What colluders know: everything that any peer is about to say or send, in this life of the run and in former ones.

Honest peers go first in every phase, and what passes through their hooks is noted here. So a colluder chooses after it
has seen all honest messages of the phase ("rushing"). It sees more than a real one could: that finds no less.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from btard.protocol.behaviour import Context, View
from btard.protocol.identity import Identity
from btard.protocol.signed import Signed

FAILURES = (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, ArithmeticError)
"""Errors that a colluder's code may meet: it is then out. CutOff, too: it has left the run of the others."""

Place = tuple[int, int, Hashable]
"""A life, a step, and what happens there: the name of a hook, with its phase, part or claim."""

RECIPIENTS: dict[str, Callable[[Sequence[int], int], Sequence[int]]] = {
    "all": lambda peers, pick: peers,
    "one": lambda peers, pick: [peers[pick % len(peers)]] if peers else [],
    "half": lambda peers, pick: peers[pick % 2 :: 2],
    "rest": lambda peers, pick: [p for p in peers if p != peers[pick % len(peers)]],
    "two": lambda peers, pick: peers[:2] if pick % 2 else peers[-2:],
}
"""Those of the remaining honest peers, ascending, that a gene or a mishap is for. Fellows see no lies."""


class Room:
    """The colluders' common knowledge of one case, over all of its lives."""

    def __init__(self) -> None:
        self.life = 0
        self.phase = ""
        """Where the honest peers are."""
        self.peers: dict[int, Any] = {}
        """Peer -> `Peer`, honest ones too."""
        self.members: set[int] = set()
        """The present and former Byzantine peers."""
        self.notes: dict[Place, dict[int, Any]] = {}
        """Place -> peer -> what honest code put there; a colluder's is replaced by what it sends."""
        self.keys: dict[int, Identity] = {}
        self.hidden: dict[tuple[int, int, str], dict[int, Signed]] = {}
        """(life, step, phase) -> colluder -> a message that honest peers have not seen."""
        self.spent: set[int] = set()
        """Colluders that took an honest peer with them in this life: each may do so once."""
        self.checked: dict[int, set[int]] = {}
        """Step -> newcomers whose work an honest member checked in it."""
        self.crashes: list[str] = []
        """Errors in the colluders' own code: they are out from there on."""

    def note(self, ctx: View, what: Hashable, value: Any) -> None:
        kept = value.clone() if isinstance(value, torch.Tensor) else value
        self.notes.setdefault((self.life, ctx.step, what), {})[ctx.peer] = kept

    def noted(self, step: int, what: Hashable, life: int | None = None) -> dict[int, Any]:
        """Peer -> what it put there."""
        return self.notes.get((self.life if life is None else life, step, what), {})

    def owners(self, ctx: Context) -> tuple[int, ...]:
        """The owners of the step's parts as far as they are known: before the commitments, the planned workers."""
        return ctx.record.owners or tuple(p for p in ctx.active if p not in ctx.assignments)
