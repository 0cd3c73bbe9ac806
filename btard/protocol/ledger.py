"""The ledger: everything that removed a peer, in the order in which it happened, the same at every honest peer."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from btard.protocol import wire
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import digest
from btard.protocol.wire import Malformed

UNPROVEN = frozenset({"silent", "gone", "undelivered"})
"""Kinds for which honest peers on bad links can be removed too."""

HEAD = "head"
"""Where a line of ledger.jsonl holds the head of the chain up to and including itself."""


@dataclass(frozen=True)
class Entry:
    """One verdict. `peers` are those it removed: the accused, or accusers that lied, or both (ELIMINATE)."""

    step: int
    """The step in which the verdict fell."""
    kind: str
    """What was claimed: a claim kind of `messages`, or what everybody saw in the broadcasts."""
    verdict: str
    """guilty, false (the accusers lied, or showed nothing), undelivered (the accused showed too little), eliminated,
    public (seen by everybody, no vote)."""
    accused: int
    accusers: tuple[int, ...]
    """Ascending; empty where the broadcasts themselves showed it."""
    peers: tuple[int, ...]
    about_step: int
    """The step in which it was done."""
    part: int = -1
    evidence: str = ""
    """Hex digest of what the judges were shown."""
    votes: dict[str, str] = field(default_factory=dict)
    """Judge -> verdict."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Entry:
        """The entry in a line of ledger.jsonl or in what `to_json` returned; Malformed says what else it is."""
        value = read_object(line, "ledger entry")
        value.pop(HEAD, None)
        expected = {item.name for item in fields(cls)}
        if set(value) != expected:
            raise Malformed(
                f"ledger entry: expected the fields {', '.join(sorted(expected))}, got {sorted(value)!r:.200}"
            )
        for name in ("step", "accused", "about_step", "part"):
            wire.check_int(value[name], name)
        for name in ("accusers", "peers"):
            value[name] = wire.check_list(value[name], name, wire.check_int, max_len=2**16)
        words = [value["kind"], value["verdict"], value["evidence"]]
        if not isinstance(value["votes"], dict):
            raise Malformed(f"votes: expected an object, got {type(value['votes']).__name__}")
        words += value["votes"].values()
        if not all(isinstance(word, str) for word in words):
            raise Malformed("ledger entry: kind, verdict, evidence and votes are words")
        return cls(**value)


def still_byzantine(config: ProtocolConfig, entries: Iterable[Entry]) -> int:
    """b_t: how many of the active peers may still be Byzantine, by what the ledger proves of those that are gone.

    An elimination proves it of one of its two peers. Who was silent or slow may have been honest. Where peers can join,
    `byzantine` bounds the members of any step.
    """
    if config.probation is not None:
        return config.byzantine
    proven = 0
    for entry in entries:
        if entry.verdict == "eliminated":
            proven += len(entry.peers) == 2
        elif entry.kind not in UNPROVEN:
            proven += len(entry.peers)
    return max(0, config.byzantine - proven)


def read_object(text: str | bytes, what: str) -> dict[str, Any]:
    """The JSON object in `text`, however hostile; Malformed if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise Malformed(f"{what}: expected a JSON object, got {type(value).__name__}")
    return value


@dataclass
class Ledger:
    """Entries, and a hash chain over them: two peers with the same head have seen the same history."""

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
        return json.dumps({**asdict(entry), HEAD: self.head.hex()}, sort_keys=True)
