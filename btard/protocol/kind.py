"""What a kind of claim has to say, and the removal after a trial; the kinds themselves are in `claims.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, NamedTuple

from btard.protocol.config import ProtocolConfig
from btard.protocol.evidence import Piece, Table
from btard.protocol.messages import FALSE_CLAIM, Claim
from btard.protocol.record import Settled, StepRecord
from btard.protocol.scalars import Truth
from btard.protocol.seat import Court, Seat
from btard.protocol.signed import Packet

Truths = Mapping[int, Truth]
"""Peer whose work in that step is on trial -> the true result to compare with, if the judge has computed it."""


class Kind(ABC):
    """One kind of claim. `about`: the record of the step that it is about; `record`: that of the current step."""

    name: ClassVar[str]
    last_step: ClassVar[bool] = False
    """Whether it is about the step before, and not about the current step."""
    needs_answer: ClassVar[bool] = True
    """Whether the accused must be present to answer it."""
    recomputes: ClassVar[bool] = False
    """Whether judges compute the accused's gradient."""
    trial: ClassVar[bool] = True
    """Whether it is tried; else it is a dispute that evidence cannot settle (ELIMINATE), or accuses nobody."""
    accuses: ClassVar[bool] = True
    """Whether it says that somebody did something wrong."""
    numeric: ClassVar[bool] = True
    """Whether the verdict follows from computed floats, whose last bits can depend on the machine."""
    accuser_shows: ClassVar[bool] = True
    """Whether the accusers must show the pieces; otherwise the accused must."""
    second_round: ClassVar[bool] = False
    """Whether peers raise it in the second round, after a conviction, and not in the first."""
    false_costs: ClassVar[bool] = True
    """Whether the accusers are removed if it is false."""
    about_part: ClassVar[bool] = False
    """Whether the part is on trial: in the current step it counts only if the claim is false."""

    @abstractmethod
    def has_cause(self, seat: Seat, record: StepRecord, about: StepRecord, accuser: int, claim: Claim) -> bool:
        """Whether, by the broadcasts, an honest peer in the place of `accuser` could raise the claim."""

    def pieces(
        self, seat: Court, about: Settled, now: Settled, claim: Claim, accusers: Sequence[int]
    ) -> tuple[Piece, ...]:
        """All that a judge needs; `now`: the step of the trial."""
        return ()

    def shown(self, seat: Seat, about: StepRecord, claim: Claim, accusers: Sequence[int]) -> list[Packet]:
        """The pieces that this peer must show, as accuser or accused."""
        return []

    def verdict(
        self, seat: Court, about: Settled, claim: Claim, pieces: Sequence[Piece], table: Table, truths: Truths
    ) -> str:
        """GUILTY, FALSE_CLAIM, or EXCUSED from a judge that has not seen enough of the `pieces`."""
        raise NotImplementedError(self.name)

    def undecided(self, tried: Tried) -> Consequence:
        """The removal if no more than half of the voters agree: that of the accusers, as if the claim were false."""
        return false_accusation(tried)


class Tried(NamedTuple):
    """A claim that was tried, and what all agree on about it, besides the votes. `record`: of the step of the trial."""

    config: ProtocolConfig
    record: StepRecord
    about: StepRecord
    claim: Claim
    accusers: tuple[int, ...]
    unseen: Collection[Piece]
    """The pieces that more than half of the voters have not seen."""


class Consequence(NamedTuple):
    """The removal after a trial: the ledger's words for it, and the peers."""

    kind: str
    verdict: str
    peers: tuple[int, ...]


NOTHING = Consequence("", "", ())


def false_accusation(tried: Tried) -> Consequence:
    return Consequence("false_accusation", FALSE_CLAIM, tried.accusers)


def undelivered(tried: Tried, accused: Collection[int], others: Collection[int]) -> Consequence:
    """Undelivered is not wrong: the `accused` go as silent peers do, and of the `others` those that are answerable."""
    answerable = set(tried.record.members) & set(tried.about.here or ())
    return Consequence("undelivered", "undelivered", tuple(sorted({*accused, *answerable.intersection(others)})))
