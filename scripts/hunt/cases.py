"""What the hunt draws, as data: a case is one line of JSON, and the line repeats the run."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

FOREVER = 10**6
"""A gene acts up to here: to the end of the run."""


class Gene(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One thing that Byzantine peers do differently from honest ones."""

    site: str
    """Where: a broadcast ("Report"), a field of one ("Report.norms"), or a hook of `Behaviour` ("hook gradient")."""
    how: str
    """What is said or sent instead: an operation of `alter.py`."""
    who: int = -1
    """Which of the Byzantine peers, counted from the lowest number; -1: all of them."""
    start: int = 0
    stop: int = FOREVER
    """The steps start ... stop - 1."""
    every: int = 1
    when: str = "always"
    """A condition on the public state of the step (`programs.MOMENTS`)."""
    to: str = "all"
    """Which recipients see it, if a hook or a broadcast knows recipients (`room.RECIPIENTS`)."""
    phase: str = ""
    """The one phase in which it acts: by name, with its attempt or without ("coin_reveal/1"), or any of that attempt
    ("/1"); "": in each."""
    where: str = "all"
    """Which parts or entries, if there are several (`programs.PLACES`)."""
    size: float = 1.0
    """How large, for operations with a size."""
    pick: int = 0
    """The seed of what the operation leaves open."""


class Twin(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A Byzantine peer that is two copies of the correct code under one key (`twins.py`); genes leave it alone."""

    who: int = 0
    """Which of the Byzantine peers of the start, counted from the lowest number."""
    start: int = 0
    """The step from which on they are two."""
    to: str = "half"
    """The honest peers that hear the second copy (`room.RECIPIENTS`); all others hear the first one."""
    sees: str = "own"
    """Which peers a copy hears directly (`twins.SIGHTS`)."""
    differ: str = "nothing"
    """How the second copy differs from the first (`twins.DIFFERENCES`)."""
    pick: int = 0
    """The seed of what is left open."""


class Program(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the Byzantine peers of a cohort do. They share all that they know."""

    genes: tuple[Gene, ...] = ()
    loyal: bool = True
    """Whether they report no fellow."""
    twins: tuple[Twin, ...] = ()


class Newcomer(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A peer that asks to join before `step`."""

    step: int
    hostile: bool = False


class Faint(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An honest peer that is late in one phase of a step: what it says there some others do not hear."""

    peer: int
    step: int
    phase: Literal["commit", "join", "join/relay"] = "commit"
    """"join": in its relays, too; "join/relay": in these alone."""
    to: str = "all"
    """The honest peers that do not hear it (`room.RECIPIENTS`)."""
    liars: bool = True
    """Whether the Byzantine peers hear it."""
    pick: int = 0
    """The seed of what is left open."""

    def lost_in(self, step: int, phase: str) -> bool:
        """Whether some do not hear the peer there. What it passes on of the commitments is in time."""
        own = phase == "commit" or not phase.startswith("commit")
        return step == self.step and own and f"{phase}/".startswith(f"{self.phase}/")


class Life(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All peers go back to a checkpoint: it is made before step `saved`, and they do so before step `lost`."""

    saved: int
    lost: int


class Environment(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A cohort, its settings and its mishaps, within the bounds of the documentation's promises."""

    peers: int
    members: tuple[int, ...] = ()
    """The Byzantine peers of the start, ascending."""
    byzantine: int = 0
    """b; hostile newcomers count too."""
    validators: int = 1
    d: int = 16
    tau: float | Literal["auto", "inf"] = 1.0
    """"inf": JSON has no infinity."""
    validation: Literal["exact", "tolerant"] = "exact"
    gradient_tol: float = 0.1
    directions: int = 1
    delta_max: float | None = None
    clip_lambda: float | None = None
    relays: int | None = None
    """Rounds of relays, if the settings name them: b or more."""
    wire: Literal["float32", "float16-parts", "float16"] = "float32"
    commitments: Literal["hashed", "ideal"] = "hashed"
    gradients: str = "normal"
    """The kind of gradients, see `environments.SHAPES`."""
    scale: float = 1.0
    """Their size."""
    away: tuple[tuple[int, int], ...] = ()
    """(peer, step): an honest peer that nobody hears in the step."""
    late: tuple[tuple[int, int], ...] = ()
    """(peer, step): an honest peer that has no gradient in time."""
    drops: tuple[tuple[int, int, str], ...] = ()
    """(peer, step, phase): an honest peer that nobody hears from this broadcast of the step on. It owes them."""
    faint: tuple[Faint, ...] = ()
    loss: float = 0.0
    """Chance that one sending of a message gets lost."""
    calm: int | None = None
    """From this step on the honest peers and their links are well, and every step has to come to its end."""
    probation: int | None = None
    heal: int | Literal["auto", "off"] = "off"
    newcomers: tuple[Newcomer, ...] = ()
    life: Life | None = None
    beside: bool = False
    """Whether another cohort runs in the same process, with ideal commitments."""
    recorded: bool = False
    """Whether the run is recorded and audited at its end."""


class Case(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A run, repeatable to the bit."""

    seed: int
    steps: int
    environment: Environment
    program: Program


class Finding(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A case in which something happened that must not."""

    invariant: str
    message: str
    step: int
    case: Case


def line_of(value: Case | Finding) -> str:
    """One line of JSON."""
    return msgspec.json.encode(value).decode()


def read(line: str) -> Finding:
    """The finding in a line; a case alone is one in which nothing has been found yet. ValueError for anything else."""
    try:
        content: Any = msgspec.json.decode(line)
        if isinstance(content, dict) and "case" in content:
            return msgspec.convert(content, Finding)
        return Finding("", "", -1, msgspec.convert(content, Case))
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a case of the hunt: {error}") from None
