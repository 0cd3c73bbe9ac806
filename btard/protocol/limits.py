"""Every size limit of the protocol, from the settings and the step: a peer and an auditor that ask here agree.

What is longer is not read: from a peer it counts as nothing, in a file it is an error. Limits are above what an honest
peer can have to say, and no promise that it is little.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from btard.protocol.hashing import DIGEST_SIZE
from btard.protocol.identity import SIGNATURE_SIZE
from btard.protocol.messages import (
    Announce,
    Certificate,
    Claims,
    CoinCommit,
    CoinReveal,
    Commit,
    Join,
    Lacking,
    Measured,
    Report,
    TimedCommit,
    Votes,
)
from btard.protocol.record import StepRecord
from btard.protocol.signed import PACKET_OVERHEAD, SIGNED_OVERHEAD

FACES = 2
"""How many messages of one sender are kept for one phase: two prove as much as ten."""

MAX_STATES = 16
"""The largest number of earlier states that are compared after a removal."""

WAITING = 1024
"""The number of requests to join that a member keeps; more are refused until some are admitted."""

# The form of messages on a wire, whoever sends them.

MAX_DIMS = 3
MAX_SIGNATURE = 128
MAX_HEADER = 2**15
"""Bytes of one item's header; a relayed message has the signatures of its relayers there, 73 bytes each."""
MAX_CHAIN = 2**12
MAX_ITEMS = 2**16

# The files of a recorded run. How many peers have joined is only known once they are read.

MAX_JSON = 2**28
"""The largest number of bytes that are read of a JSON file; the messages of a step of 1,000 peers stay below."""
MAX_VALUES = 2**22
"""The largest number of JSON values that are read of a file: each takes memory, were it an empty list of two bytes."""
MAX_LEDGER = 2**28
"""The largest number of bytes that are read of a ledger."""


@dataclass(frozen=True)
class Limits:
    """The limits of broadcasts in a step."""

    peers: int
    """Number of members and newcomers of the step, or of the peers at the start if these are more."""
    directions: int
    """`ProtocolConfig.directions`."""

    @property
    def claims(self) -> int:
        """Accusations an honest peer can raise in a round: of its target, each sender of its part, each owner."""
        return 1 + 2 * self.peers

    def payload(self, kind: type[Any]) -> int:
        """Upper bound in bytes of an honest payload of this kind, checked before decoding."""
        if kind is Measured:
            return 64 + (MAX_STATES + 1) * (DIGEST_SIZE + 2 + 18)
        if kind is Claims:
            return 16 + self.claims * 40
        pieces = self.peers * (self.peers + self.claims)  # all parts of a step, and one for each claim
        if kind is Lacking:
            return 16 + 5 * pieces
        if kind is Votes:  # a verdict on every claim that all peers together can raise
            return 32 + self.claims * self.peers * 9 + 5 * pieces
        per_peer = 9 * (self.directions + 2) + 16 if kind is Report else _PER_PEER[kind]
        return 512 + self.peers * per_peer

    def message(self, kind: type[Any]) -> int:
        """Upper bound in bytes of an honest `Signed` with a payload of this kind."""
        return self.payload(kind) + SIGNATURE_SIZE + 64 + SIGNED_OVERHEAD


_PER_PEER: dict[Any, int] = {
    Commit: DIGEST_SIZE + 8,
    TimedCommit: DIGEST_SIZE + 8,
    CoinCommit: 0,
    CoinReveal: 5,
    Announce: 5,  # senders; an owner announces one part
    Join: DIGEST_SIZE + SIGNATURE_SIZE + 8,  # for each newcomer of a step: not more than peers
    Certificate: SIGNATURE_SIZE + 8,
}
"""Bytes of a payload for each peer or part of the step."""


def told_limit(senders: int, message: int) -> int:
    """Bytes that a peer needs to pass on what all `senders` said in a phase whose messages have `message` bytes."""
    return FACES * senders * message


def relay_limit(senders: int, message: int) -> int:
    """The same in a round of relays: each message with the signatures of the peers that passed it on.

    That is more than a certificate has.
    """
    return told_limit(senders, message + senders * (SIGNATURE_SIZE + 16))


def packet_limit(record: StepRecord, parts: Iterable[int], kind: str = "") -> int:
    """Bytes that a peer may send if it has a packet of `kind` for each of `parts` to send; twice what is honest.

    So a wrong size is still read and becomes evidence, and ten times the size is not read at all.
    """
    return sum(2 * (record.cut.nbytes(part, kind) + SIGNATURE_SIZE + PACKET_OVERHEAD) for part in parts)


def evidence_limit(parts: Iterable[tuple[StepRecord, int]]) -> int:
    """Bytes of evidence from one peer that has to show a packet for each of `parts`, (step, part), as for a claim.

    Whatever was read as a packet can be shown: no part is larger than the first.
    """
    return sum(packet_limit(record, [0]) for record, _ in parts)


def question_limit(parts: int) -> int:
    """Bytes that a newcomer needs to say which of so many parts it lacks."""
    return parts * PACKET_OVERHEAD


def answer_limit(record: StepRecord, parts: Iterable[int]) -> int:
    """Bytes that a member needs to give a newcomer the aggregates of `parts`."""
    return sum(2 * record.cut.nbytes(part, "aggregate") + 256 for part in parts)


def proof_limit(d: int, shown: int) -> int:
    """Bytes of a recorded proof's tensors: parameters and aggregates, of two steps, and so many packets shown.

    As on a wire (`packet_limit`) a packet may have twice the bytes of all parameters, as if there were one part.
    """
    return 3 * 4 * d + shown * (8 * d + 2**16) + 2**20


def state_limit(d: int) -> int:
    """Bytes of the file of a recorded state: parameters, and the digests of the rest."""
    return 4 * d + 2**20
