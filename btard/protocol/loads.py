"""How many bytes an honest peer may have to move in a phase: what the deadlines of peers with clocks are made of.

A load is the larger one of what a peer sends and what honest peers send it. It follows from what all honest peers agree
on when the phase begins, so that all of them wait equally long. What liars send besides is up to the limits
(`limits.py`), and no part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from btard.protocol.identity import SIGNATURE_SIZE
from btard.protocol.limits import question_limit, relay_limit, told_limit
from btard.protocol.messages import PACKET_OVERHEAD
from btard.protocol.record import StepRecord


def packets(record: StepRecord, parts: Iterable[int]) -> int:
    """Bytes of a packet for each of `parts`."""
    return sum(4 * record.cut.size(part) + SIGNATURE_SIZE + PACKET_OVERHEAD for part in parts)


def of_broadcast(record: StepRecord, message: int) -> int:
    """Everybody says up to `message` bytes to everybody."""
    return _others(record) * message


def of_relays(record: StepRecord, message: int) -> int:
    """A round in which each member passes on to all others what was said in a phase of such messages."""
    return _others(record) * relay_limit(len(record.speakers), message)


def of_telling(record: StepRecord, message: int) -> int:
    """Each member passes that on to each newcomer."""
    return max(len(record.members), len(record.newcomers)) * told_limit(len(record.speakers), message)


def of_parts(record: StepRecord) -> int:
    """Each worker sends every other one the part that this one owns; as many come in, of nearly the same size."""
    return packets(record, _owned(record))


def of_aggregates(record: StepRecord) -> int:
    """Each owner sends its aggregate to everybody else, and gets everybody else's."""
    largest = max((packets(record, [part]) for part in record.announced), default=0)
    return max((len(record.remaining) - 1) * largest, packets(record, record.announced))


def of_recovery(record: StepRecord) -> int:
    """Each member gives each other one the aggregates that this one said it lacks."""
    lacked = [packets(record, set(parts) & set(record.announced)) for parts in record.missing.values()]
    return max(sum(lacked), _others(record) * max(lacked, default=0))


def of_disclosure(last: StepRecord) -> int:
    """A target sends its validator all parts of its gradient."""
    return packets(last, range(last.cut.k))


Owed = Mapping[int, Sequence[tuple[StepRecord, int]]]
"""Peer -> the packets that it has to show, one for each (step, part)."""


def of_evidence(record: StepRecord, owed: Owed) -> int:
    """Everybody shows what it owes to all members: the evidence on one aggregate alone is as large as a gradient."""
    shown = [_of(pieces) for pieces in owed.values()]
    return max(_others(record) * max(shown, default=0), sum(shown))


class Asked(NamedTuple):
    """A packet about a part that `recipient` has asked for; each of the `holders` is to send it."""

    recipient: int
    record: StepRecord
    part: int
    holders: frozenset[int]


def of_passing(asked: Iterable[Asked]) -> int:
    """Each holder gives what was asked of it."""
    sent: Counter[int] = Counter()
    came: Counter[int] = Counter()
    for recipient, record, part, holders in asked:
        size = packets(record, [part])
        sent.update(dict.fromkeys(holders, size))
        came[recipient] += len(holders) * size
    return max((*sent.values(), *came.values()), default=0)


def of_bringing_up(record: StepRecord, usable: Sequence[int]) -> int:
    """Each owner sends its aggregate to all newcomers, each of which gets all of them."""
    largest = max((packets(record, [part]) for part in usable), default=0)
    return max(len(record.newcomers) * largest, packets(record, usable))


def of_questions(record: StepRecord, parts: int, helpers: int) -> int:
    """Each newcomer asks `helpers` members for each of so many parts."""
    return max(helpers, len(record.newcomers)) * question_limit(parts)


def of_answers(record: StepRecord, usable: Sequence[int], helpers: int) -> int:
    """Each of the `helpers` of a part gives it to all newcomers."""
    return max(helpers, len(record.newcomers)) * packets(record, usable)


def _others(record: StepRecord) -> int:
    """Everybody that a peer says something to."""
    return len(record.remaining) + len(record.newcomers) - 1


def _owned(record: StepRecord) -> list[int]:
    return [part for part in range(record.cut.k) if record.owner(part) in record.workers]


def _of(pieces: Iterable[tuple[StepRecord, int]]) -> int:
    return sum(packets(record, [part]) for record, part in pieces)
