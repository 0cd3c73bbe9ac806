"""What an audit says: a line for each ledger entry that passed and a summary, or the first problem."""

from __future__ import annotations

from dataclasses import dataclass

from btard.protocol.heal import HEALED, described
from btard.protocol.ledger import Entry
from btard.protocol.wire import Malformed

MESSAGES = "replayed from the signed messages"
SIGNATURES = "replayed; that nothing was said rests on the majority, which signed what followed"
UNCERTAIN = "not certain yet: that nothing else was said would rest on what a majority signs next, and nothing follows"
REPLAYED = "replayed from evidence"
RECOMPUTED = "gradient recomputed"
UNCONFIRMED = "gradient recomputed, at parameters that no commitment confirms to the bit on this machine"
MEASURED = "states measured again"
UNMEASURED = "replayed from the signed messages; not all of the states are there to be measured again"
ELSEWHERE = "not certain here: recorded on {there}; this is {here}, and their bits may differ"
UNSHOWN = "by the votes; not enough voters say that they had been shown the evidence"
UNSEEN = "by the votes; the peer that recorded it was not shown all the evidence"
CLOSE = "by the votes; this machine's numbers differ, but no more than those of honest machines may"
VOTES = "votes only: the gradient was not recomputed"


class AuditError(Exception):
    """The run folder does not hold what an honest majority has signed; one line: which file, where, and why."""


class NotReproduced(AuditError):
    """The stored parameters give no committed gradient: they were altered, or this machine computes other bits."""


class Unwitnessed(NotReproduced):
    """No proof of an alteration: all peers that worked in the step may be liars that were never convicted."""


class TooFew(AuditError):
    """The only problem is that too few peers have signed it."""


@dataclass(frozen=True)
class Finding:
    """One ledger entry that passed the audit."""

    entry: Entry
    checked: str

    def __str__(self) -> str:
        entry = self.entry
        accusers = f" accused by {', '.join(map(str, entry.accusers))};" if entry.accusers else ""
        agreeing = sum(vote == entry.verdict for vote in entry.votes.values())
        votes = f" votes {agreeing} for, {len(entry.votes) - agreeing} against;" if entry.votes else ""
        if entry.kind == HEALED:
            return f"{described(entry)}; {self.checked}"
        peers = entry.peers or (entry.accused,)  # nobody is removed where somebody joins
        who = f"peer{'s' if len(peers) > 1 else ''} {', '.join(map(str, peers))}"
        return f"step {entry.step}: {who}: {entry.kind};{accusers}{votes} {self.checked}"


@dataclass(frozen=True)
class Report:
    """What the audit found in order."""

    findings: tuple[Finding, ...]
    summary: str
    notes: tuple[str, ...] = ()
    """What could not be compared and concerns no entry, one line each."""


def within(file: str, error: Malformed) -> str:
    """The error's line with the name of the file that it is about, unless it has one of the same step already."""
    return str(error) if str(error).startswith(file.partition(".")[0]) else f"{file}: {error}"
