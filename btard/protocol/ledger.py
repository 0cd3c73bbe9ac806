"""The ledger: everything that removed or added a peer, in order, the same at every honest peer; who is left by it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from btard.protocol import wire
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import digest
from btard.protocol.wire import Malformed, Number

UNPROVEN = frozenset({"silent", "gone", "undelivered"})
"""Kinds for which honest peers on bad links can be removed too."""

ADMITTED, GRADUATED = "join", "member"
"""The kinds of entries that add a peer; they remove nobody."""

HEAD = "head"
"""The key in a line of ledger.jsonl for the head of the chain up to and including that line."""


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One verdict. `peers` are the peers that it removed: the accused, or accusers that lied, or both (ELIMINATE).

    >>> import btard
    >>> btard.Entry(4, "wrong_gradient", "guilty", accused=2, accusers=(0,), peers=(2,), about_step=3).to_json()[:16]
    '{"about_step": 3'
    """

    step: Number
    """The step in which the verdict fell."""
    kind: str
    """What was claimed: a claim kind of `messages`, or what the broadcasts showed to everybody."""
    verdict: str
    """guilty, false (the accusers lied, or showed nothing), undelivered (the accused showed too little), eliminated,
    public (seen by everybody, no vote)."""
    accused: Number
    accusers: tuple[Number, ...]
    """Ascending; empty where the broadcasts themselves showed it."""
    peers: tuple[Number, ...]
    about_step: Number
    """The step in which the accused did it."""
    part: Number = -1
    evidence: str = ""
    """Hex digest of what the judges were shown."""
    votes: dict[str, str] = {}
    """Judge -> verdict."""
    losses: dict[str, float] = {}
    """For a healing: step -> the loss of the state at its beginning."""

    def fields(self) -> dict[str, Any]:
        """The entry as JSON values; without losses if there are none."""
        return {name: value for name, value in asdict(self).items() if name != "losses" or value}

    def to_json(self) -> str:
        return json.dumps(self.fields(), sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Entry:
        """The entry in a line of ledger.jsonl or in what `to_json` returned; Malformed says what it is instead."""
        value = read_object(line, "ledger entry")
        value.pop(HEAD, None)
        value.setdefault("losses", {})
        return wire.convert(value, cls, "ledger entry")


def members_of(entries: Sequence[Entry], peers: int) -> list[int]:
    """The numbers of the members after these entries, ascending, without newcomers; `peers`: how many began."""
    removed = {peer for entry in entries for peer in entry.peers}
    return [peer for peer in everybody(entries, peers) if peer not in removed]


def everybody(entries: Sequence[Entry], peers: int) -> list[int]:
    """The numbers of all that were ever members, ascending."""
    return [*range(peers), *sorted({entry.accused for entry in entries if entry.kind == GRADUATED} - {*range(peers)})]


def keys_of(entries: Sequence[Entry], founders: Sequence[bytes]) -> dict[int, bytes]:
    """Number -> public key of all first peers and of everybody that was admitted after them."""
    admitted = {entry.accused: bytes.fromhex(entry.evidence) for entry in entries if entry.kind == ADMITTED}
    return dict(enumerate(founders)) | admitted


def still_byzantine(config: ProtocolConfig, entries: Sequence[Entry]) -> int:
    """b_t: how many of the active peers may still be Byzantine, by what the ledger proves about the removed peers.

    An elimination proves it of one of its two peers. A peer that was silent or slow may have been honest. Where peers
    can join, `byzantine` bounds the members of any step. In any case the honest are the majority of the active peers,
    or nothing that b_t is for would hold: with a larger one they would wait for more than they are.
    """
    proven = 0
    for entry in entries if config.probation is None else ():
        if entry.verdict == "eliminated":
            proven += len(entry.peers) == 2
        elif entry.kind not in UNPROVEN:
            proven += len(entry.peers)
    minority = (len(members_of(entries, config.peers)) - 1) // 2
    return max(0, min(config.byzantine - proven, minority))


def read_object(text: str | bytes, what: str) -> dict[str, Any]:
    """The JSON object in `text`, however hostile; Malformed if there is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise Malformed(f"{what}: expected a JSON object, got {type(value).__name__}")
    return value


@dataclass
class Ledger:
    """Entries, and a hash chain over them: two peers with the same head have seen the same history.

    Who writes to it, but by `append`:

        ledger.py: entries, head
        audit/observer.py: head
        audit/replay.py: entries
    """

    entries: list[Entry] = field(default_factory=list)
    head: bytes = b""

    @classmethod
    def of(cls, lines: Iterable[str]) -> Ledger:
        """The ledger in the lines of a ledger.jsonl that this process wrote itself: the heads are not checked."""
        ledger = cls()
        for line in lines:
            ledger.append(Entry.from_json(line))
        return ledger

    def append(self, entry: Entry) -> str:
        """Add `entry`; returns its line of ledger.jsonl: the entry and the head of the chain that ends with it."""
        self.entries.append(entry)
        self.head = digest("ledger", self.head, entry.to_json())
        return json.dumps({**entry.fields(), HEAD: self.head.hex()}, sort_keys=True)
