"""How many bytes an honest peer may have to move in a phase: the basis of the deadlines of peers with clocks.

A load is the larger one of what a peer sends and what it may be sent: all that is due to it, and what liars can fill
its line with, up to the limit of the phase. It follows from what all honest peers agree on when the phase begins, so
that all of them wait equally long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from btard.protocol.identity import SIGNATURE_SIZE
from btard.protocol.limits import packet_limit, relay_limit, told_limit
from btard.protocol.record import StepRecord
from btard.protocol.signed import PACKET_OVERHEAD


def packets(record: StepRecord, parts: Iterable[int], kind: str = "") -> int:
    """Bytes of a packet of `kind` for each of `parts`; without it, of the larger kind."""
    cut = record.cut
    return sum(cut.nbytes(part, kind) + SIGNATURE_SIZE + PACKET_OVERHEAD for part in parts)


def of_broadcast(record: StepRecord, message: int) -> int:
    """Every peer sends up to `message` bytes to every other."""
    return _others(record) * message


def of_relays(record: StepRecord, message: int) -> int:
    """A round in which each member passes on to all others what was said in a phase of such messages."""
    return _others(record) * relay_limit(len(record.speakers), message)


def of_telling(record: StepRecord, message: int) -> int:
    """Each member passes this on to each listener."""
    return max(len(record.members), len(record.listeners)) * told_limit(len(record.speakers), message)


def of_parts(record: StepRecord, limit: int) -> int:
    """Each worker sends every other worker the part that the other owns; as many come in, of nearly the same size.

    All that are to work: not all peers know yet who does.
    """
    gradient = packets(record, range(record.cut.k), "part")
    return _load(record, gradient, gradient, limit)


def of_aggregates(record: StepRecord, limit: int) -> int:
    """Each owner sends its aggregate to everybody else, and gets everybody else's.

    Those of all workers: not all peers know yet who has announced one.
    """
    parts = [part for part in range(record.cut.k) if record.owner(part) in record.workers]
    sent = packets(record, parts[:1], "aggregate")  # no part is larger than those before it
    return _load(record, _others(record) * sent, packets(record, parts, "aggregate"), limit)


def of_recovery(record: StepRecord) -> int:
    """Each member gives each other member the aggregates that the other said it lacks."""
    lacked = [set(parts) & set(record.announced) for parts in record.missing.values()]
    sizes = [packets(record, parts, "aggregate") for parts in lacked]
    limit = max((packet_limit(record, parts, "aggregate") for parts in lacked), default=0)
    return _load(record, sum(sizes), _others(record) * max(sizes, default=0), limit)


def of_disclosure(record: StepRecord, last: StepRecord, limit: int) -> int:
    """A validator is sent all parts of its target's gradient of the step before: by the target, or by their owners.

    An owner can be a target itself.
    """
    gradient = packets(last, range(last.cut.k), "part")
    away = sum(not record.attends(target) for target in record.assignments.values())
    return _load(record, gradient + away * largest(last, "part"), gradient, limit)


Owed = Mapping[int, Sequence[tuple[StepRecord, int]]]
"""Peer -> the packets that it has to show, one for each (step, part)."""


def of_evidence(record: StepRecord, owed: Owed, limit: int) -> int:
    """Every peer shows what it owes to all members: the evidence on one aggregate alone is as large as a gradient."""
    shown = [sum(packets(about, [part]) for about, part in pieces) for pieces in owed.values()]
    return _load(record, _others(record) * max(shown, default=0), sum(shown), limit)


class Asked(NamedTuple):
    """A packet about a part that `recipient` has asked for; each of the `holders` must send it."""

    recipient: int
    record: StepRecord
    part: int
    holders: frozenset[int]


def of_passing(record: StepRecord, asked: Iterable[Asked], limit: int) -> int:
    """Each holder gives what was asked of it."""
    sent: Counter[int] = Counter()
    came: Counter[int] = Counter()
    for recipient, about, part, holders in asked:
        size = packets(about, [part])
        sent.update(dict.fromkeys(holders, size))
        came[recipient] += len(holders) * size
    return _load(record, max(sent.values(), default=0), max(came.values(), default=0), limit)


def of_bringing_up(record: StepRecord, usable: Sequence[int], limit: int) -> int:
    """Each owner sends its aggregate to all newcomers, each of which gets all of them."""
    sent = len(record.newcomers) * largest(record, "aggregate")
    return _load(record, sent, packets(record, usable, "aggregate"), limit)


def of_questions(record: StepRecord, helpers: int, limit: int) -> int:
    """Each listener asks `helpers` members for what it lacks."""
    return _load(record, helpers * limit, len(record.listeners) * limit, limit)


def of_answers(record: StepRecord, usable: Sequence[int], helpers: int, limit: int) -> int:
    """Each of the `helpers` of a part gives it to all listeners."""
    size = packets(record, usable, "aggregate")
    return _load(record, len(record.listeners) * size, helpers * size, limit)


def largest(record: StepRecord, kind: str) -> int:
    """Bytes of the largest packet of `kind` about a part of the step."""
    return max((packets(record, [part], kind) for part in record.announced), default=0)


def _load(record: StepRecord, sent: int, received: int, limit: int) -> int:
    """The larger one; as many peers as can be hostile may send up to `limit` bytes in addition."""
    return max(sent, received + (record.byzantine + len(record.newcomers)) * limit)


def _others(record: StepRecord) -> int:
    """All peers to which a peer says something."""
    return len(record.remaining) + len(record.newcomers) - 1
