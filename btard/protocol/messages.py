"""Everything peers say to each other, each message as it is before it is signed (`signed.py`).

Letters: k parts and workers, one direction z by default. Peers, parts and steps are integers on the wire.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from btard.protocol import wire
from btard.protocol.hashing import signed_digest
from btard.protocol.identity import SIGNATURE_SIZE, Identity, verify_key
from btard.protocol.memory import NOTHING, Memory
from btard.protocol.wire import Digest, Message, Number

NOBODY = -1

CLAIM_KINDS = frozenset(
    {
        "wrong_gradient",  # committed gradient or reports are not those of the public batch
        "misreport",  # norm or s is not what the sender's part gives (V1)
        "wrong_aggregate",  # a[j] does not solve (CC) (V2, V3, or a validator's corrected sum)
        "bad_part",  # part does not match its hash, is malformed or not finite
        "bad_aggregate",  # a[j] received does not match the announced hash, is malformed or not finite
        "withheld_part",  # a part that never came: ELIMINATE
        "withheld_aggregate",  # an aggregate that never came: ELIMINATE
    }
)
TOLERANT_KINDS = frozenset({"undisclosed"})
"""A validator's claim, only in tolerant validation, that it was not shown what its target committed to."""
PROBATION_KINDS = frozenset({"unchecked"})
"""If peers can join: a validator could not check a newcomer's work. It accuses nobody, and clears nobody."""
EXCLUSION_KINDS = ("bad_part", "withheld_part")
"""An owner that leaves a worker out of its list must raise one of these claims."""
MISSING_KINDS = ("bad_aggregate", "withheld_aggregate")
"""A peer that lacks an aggregate must raise one of these claims."""
ELIMINATE_KINDS = frozenset({"withheld_part", "withheld_aggregate"})

GUILTY, FALSE_CLAIM, EXCUSED = "guilty", "false", "excused"
VERDICTS = frozenset({GUILTY, FALSE_CLAIM, EXCUSED})


ClaimKind = Annotated[str, wire.one_of(CLAIM_KINDS | TOLERANT_KINDS | PROBATION_KINDS)]
Verdict = Annotated[str, wire.one_of(VERDICTS)]
SignatureBytes = Annotated[bytes, Meta(min_length=SIGNATURE_SIZE, max_length=SIGNATURE_SIZE)]


class Commit(Message, frozen=True):
    """Phase commit: the hashes h_i[j] of the sender's parts, one for each of the k parts."""

    digests: tuple[Digest, ...]
    after: bytes = b""
    """Where newcomers can join: the ledger's head after phase `join`. A peer that was late there may have another."""


UNKNOWN = -1
"""Stands for no time: the sender was not in the step before, or it has no clock."""


class TimedCommit(Commit, frozen=True):
    """The same commitment in a run with `max_away`."""

    elapsed: Number = UNKNOWN
    """Milliseconds since the sender began the step before, by its own clock; or UNKNOWN."""


class AnnouncedPart(Message, frozen=True):
    """H(a[j]) of part `part` and the workers whose parts went into it, ascending."""

    part: Number
    digest: Digest
    senders: tuple[Number, ...]


class Announce(Message, frozen=True):
    """Phase aggregate: what an aggregator commits to before anybody sees its aggregates."""

    parts: tuple[AnnouncedPart, ...]


class CoinCommit(Message, frozen=True):
    """Phase coin: H(u_i, salt_i)."""

    digest: Digest


class CoinReveal(Message, frozen=True):
    """Phase coin: (u_i, salt_i), 32 bytes each. Or the parts whose aggregate did not reach the sender intact.

    In the second case it reveals nothing yet, and the rest is zeros.
    """

    value: Digest
    salt: Digest
    missing: tuple[Number, ...] = ()

    @staticmethod
    def lacking(parts: Iterable[int]) -> CoinReveal:
        """What a peer says that lacks the aggregates of these parts."""
        return CoinReveal(bytes(32), bytes(32), tuple(parts))


class Report(Message, frozen=True):
    """Phase report: norm_i[j] and s_i[j] per part j (per direction for s), and the size ||g_i[j]||.

    All are 0 where the sender's part did not go in.
    """

    norms: tuple[float, ...]
    products: tuple[tuple[float, ...], ...]
    missing: tuple[Number, ...] = ()
    sizes: tuple[float, ...] = ()

    def finite(self) -> bool:
        return all(all(map(math.isfinite, row)) for row in (self.norms, self.sizes, *self.products))

    def corrected(self, true: Report, kept: Collection[int]) -> Report:
        """The values of `true`, except for the parts in `kept`, about which nobody knows better."""

        def mixed(said: Sequence[Any], right: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(a if part in kept else b for part, (a, b) in enumerate(zip(said, right, strict=True)))

        missing = {part for part in self.missing if part in kept} | {part for part in true.missing if part not in kept}
        norms, sizes = mixed(self.norms, true.norms), mixed(self.sizes, true.sizes)
        return Report(norms, mixed(self.products, true.products), tuple(sorted(missing)), sizes)


class Claim(Message, frozen=True, order=True):
    """ACCUSE(sender, accused): what `accused` did wrong at `step`; `part` is NOBODY where no part is concerned."""

    step: Number
    accused: Number
    kind: ClaimKind
    part: Number = NOBODY


class Claims(Message, frozen=True):
    """Phase accuse: the sender's accusations of this round, and the peers it could not check; usually none."""

    claims: tuple[Claim, ...]


class Votes(Message, frozen=True):
    """Phase accuse: the sender's verdicts, in the order of the round's sorted claims, and what evidence it lacks."""

    verdicts: tuple[Verdict, ...]
    lacking: tuple[Number, ...] = ()


class Lacking(Message, frozen=True):
    """Phase accuse: the pieces of evidence that the sender lacks, by their place in the round's list; usually none."""

    pieces: tuple[Number, ...] = ()


class Measured(Message, frozen=True):
    """Phase heal: what the sender found about some earlier states, ascending, and the present one, which comes last."""

    digests: tuple[Digest, ...]
    """The digest of each state."""
    losses: tuple[float, ...]
    """The mean loss of each state over the public batch."""
    bounds: tuple[float, ...]
    """For each earlier state, how much worse than the present one it may be: below 0 it is clearly better."""

    def fits(self, states: int) -> bool:
        """Whether it is about so many states, and all its numbers are finite."""
        sizes = len(self.digests), len(self.losses), len(self.bounds) + 1
        return set(sizes) == {states} and all(map(math.isfinite, (*self.losses, *self.bounds)))


class Certificate(Message, frozen=True):
    """Signatures of members on what the sender heard in a phase, by member: see `certificate.py`."""

    signers: tuple[Number, ...]
    signatures: tuple[SignatureBytes, ...]


class JoinRequest(Message, frozen=True):
    """The holder of this public key wants to join this run. The request can be passed on, and is used only once."""

    key: Digest
    signature: SignatureBytes

    @classmethod
    def create(cls, identity: Identity, run_id: str) -> JoinRequest:
        return cls(identity.public_key, identity.sign(signed_digest("join", run_id, identity.public_key)))

    def authentic(self, run_id: str, memory: Memory = NOTHING) -> bool:
        """Whether the holder of the key signed it for this run."""
        return memory(verify_key, self.key, signed_digest("join", run_id, self.key), self.signature)


class Join(Message, frozen=True):
    """The requests to join that the sender names in this step."""

    requests: tuple[JoinRequest, ...]


P = TypeVar(
    "P",
    Commit,
    TimedCommit,
    Announce,
    CoinCommit,
    CoinReveal,
    Report,
    Claims,
    Votes,
    Join,
    Lacking,
    Measured,
    Certificate,
)
