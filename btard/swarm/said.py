"""What one peer says of itself: the known fields of its status, each of them bounded. All of it may be a lie."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta, Struct

from btard.protocol import wire
from btard.protocol.config import MAX_PEERS
from btard.protocol.wire import Malformed, Number, shown

RECENT = 24
"""Number of steps that a status tells of."""
PHASE, PHASES = re.compile(r"[a-z_]{1,32}"), 64
"""What the name of a phase looks like, and how many a step may have."""

Row = dict[str, Any]
"""What a peer tells of one step: step, loss (None if it has none), active, samples, lr, sent, entries (of its ledger,
or None), seconds and bytes by phase, account (an `Account` or None)."""


class Account(Struct, frozen=True):
    """What each peer did in a step, as in `btard.drivers.account`, according to one peer."""

    roles: Annotated[str, Meta(max_length=MAX_PEERS)]
    checks: Annotated[tuple[tuple[Number, Number], ...], Meta(max_length=MAX_PEERS)]
    accused: Annotated[tuple[Number, ...], Meta(max_length=MAX_PEERS)]
    skipped: Annotated[tuple[Number, ...], Meta(max_length=MAX_PEERS)]


@dataclass(frozen=True)
class Said:
    """One status. What is missing or makes no sense is None, or empty."""

    state: str | None = None
    phase: str | None = None
    instance: str | None = None
    head: str | None = None
    step: int | None = None
    attacks: bool | None = None
    ledger: tuple[str, ...] | None = None
    """The newest lines of its ledger."""
    entries: int | None = None
    """The length of its ledger."""
    rows: tuple[Row, ...] = ()
    """The last steps, in the order in which it tells them."""

    @property
    def newest(self) -> int:
        """The last step that it tells of, -1 if there is none."""
        return max((row["step"] for row in self.rows), default=-1)


def read_status(status: Mapping[str, Any]) -> Said:
    """What is in a status. Its sender may lie, but must not break anything."""
    attacks, lines = status.get("attacks"), status.get("ledger")
    return Said(
        state=_word(status.get("state")),
        phase=_word(status.get("phase")),
        instance=_word(status.get("instance")),
        head=_word(status.get("head")),
        step=_whole(status.get("step")),
        attacks=attacks if isinstance(attacks, bool) else None,
        ledger=tuple(lines) if isinstance(lines, list) and all(isinstance(line, str) for line in lines) else None,
        entries=_whole(status.get("entries")),
        rows=_rows(status.get("recent")),
    )


def is_number(value: Any) -> bool:
    """Whether sums and means of such values are numbers, too: neither NaN nor infinite nor of hundreds of digits."""
    return type(value) in (int, float) and abs(value) < 2**63 and math.isfinite(value)


def _rows(told: Any) -> tuple[Row, ...]:
    """The well-formed ones of the last rows."""
    rows = (_row(row) for row in (told[-RECENT:] if isinstance(told, list) else ()))
    return tuple(row for row in rows if row is not None)


def _row(row: Any) -> Row | None:
    if not isinstance(row, dict) or (step := _whole(row.get("step"))) is None:
        return None
    seconds, sent = _by_phase(row.get("seconds")), _by_phase(row.get("bytes"))
    numbers = {name: row.get(name) for name in ("active", "samples", "lr", "sent")}
    loss = row.get("loss")
    if seconds is None or not all(map(is_number, numbers.values())) or not (loss is None or isinstance(loss, float)):
        return None
    return numbers | {
        "step": step,
        "loss": loss if is_number(loss) else None,
        "entries": _whole(row.get("entries")),
        "seconds": seconds,
        "bytes": sent or {},
        "account": _account(row),
    }


def _by_phase(told: Any) -> dict[str, float] | None:
    """The numbers of phases that can be some; None if there is anything but numbers."""
    if not isinstance(told, dict) or not all(map(is_number, told.values())):
        return None
    known = {phase: number for phase, number in told.items() if PHASE.fullmatch(phase)}
    return known if len(known) <= PHASES else {}


def _account(row: Mapping[str, Any]) -> Account | None:
    """What each peer did in a step according to one peer; None if that makes no sense."""
    try:
        return wire.convert({name: row.get(name, []) for name in Account.__struct_fields__}, Account, "row")
    except Malformed:
        return None


def _whole(value: Any) -> int | None:
    return value if type(value) is int and is_number(value) else None


def _word(value: Any) -> str | None:
    """A peer's own word for something, made fit for a table; None if it has none."""
    return shown(value, 64) if isinstance(value, str) else None
