"""The ledger: everything that removed a peer, in the order in which it happened, the same at every honest peer."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from btard.protocol.hashing import digest


@dataclass(frozen=True)
class Entry:
    """One verdict. `peers` are those it removed: the accused, or accusers that lied, or both (ELIMINATE)."""

    step: int
    """The step in which the verdict fell."""
    kind: str
    """What was claimed: a claim kind of `messages`, or what everybody saw in the broadcasts."""
    verdict: str
    """guilty, false (the accusers lied), excused (nobody was), eliminated, public (seen by everybody, no vote)."""
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
        value = json.loads(line)
        value["accusers"], value["peers"] = tuple(value["accusers"]), tuple(value["peers"])
        return cls(**value)


@dataclass
class Ledger:
    """Entries, and a hash chain over them: two peers with the same head have seen the same history."""

    entries: list[Entry] = field(default_factory=list)
    head: bytes = b""

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.head = digest("ledger", self.head, entry.to_json())
