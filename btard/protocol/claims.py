"""The kinds of claims, one class each: who may raise it, what must be shown for it, and the verdict.

A verdict is a function of the settings, the agreed record of the step in question, the claim, and the pieces of
evidence, each of which is what somebody committed to or signed: whoever holds them all comes to the same. For gradients
there is one more input, `Truth`. Judges and the audit call the same functions, whose types (`Court`, `Settled`) give
them nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch

from btard.protocol.evidence import Piece, Table, announced_aggregate, committed_work, parts_of, values_shown
from btard.protocol.kind import NOTHING, Consequence, Kind, Tried, Truths, false_accusation, undelivered
from btard.protocol.messages import EXCUSED, FALSE_CLAIM, GUILTY, NOBODY, Claim
from btard.protocol.record import Settled, StepRecord
from btard.protocol.scalars import Truth, part_scalars
from btard.protocol.seat import ACCUSE, Court, Seat
from btard.protocol.signed import Packet, is_finite
from btard.protocol.validate import Work, work_is_wrong
from btard.protocol.verify import aggregate_is_right, reported, scalars_differ


class WrongGradient(Kind):
    """The accused's commitments or reports are not those of its public batch. Raised by its validator alone."""

    name = "wrong_gradient"
    last_step = True
    needs_answer = False
    recomputes = True

    def has_cause(self, seat: Seat, record: StepRecord, about: StepRecord, accuser: int, claim: Claim) -> bool:
        duty = record.assignments.get(accuser) == claim.accused
        if not duty or claim.part != NOBODY or claim.accused not in about.commits:
            return False
        # Mode `exact`: hashes decide, and nothing has to be shown for it.
        return seat.config.validation == "exact" or bool(about.parts_to_show(claim.accused, record))

    def pieces(
        self, seat: Court, about: Settled, now: Settled, claim: Claim, accusers: Sequence[int]
    ) -> tuple[Piece, ...]:
        """Mode `exact`: none, since hashes decide. Mode `tolerant`: if the accused is away, what others hold."""
        parts = about.parts_to_show(claim.accused, now) if seat.config.validation == "tolerant" else ()
        return tuple(Piece("part", claim.accused, about.step, part) for part in parts)

    def shown(self, seat: Seat, about: StepRecord, claim: Claim, accusers: Sequence[int]) -> list[Packet]:
        """Mode `tolerant`: the accuser has been shown the gradient, and shows it."""
        disclosed = seat.current.disclosed if seat.id in accusers else {}
        return [Packet("part", claim.accused, about.step, j, body, b"") for j, body in sorted(disclosed.items())]

    def verdict(
        self, seat: Court, about: Settled, claim: Claim, pieces: Sequence[Piece], table: Table, truths: Truths
    ) -> str:
        truth = truths.get(claim.accused)
        if truth is None or not is_finite(truth.gradient):
            return EXCUSED
        hidden = any(piece not in table for piece in pieces)
        if seat.config.validation == "exact":
            honest = seat.commitments.parts(claim.accused, about.step, truth.gradient, about.cut)
            if honest != about.commits[claim.accused].digests:
                return GUILTY
            work = Work(truth.gradient)
        elif hidden and len(pieces) == about.cut.k:
            return EXCUSED  # the accused is here, and could have shown it
        else:
            work = committed_work(about, claim.accused, table, truth.gradient)
        if work_is_wrong(seat, about, claim.accused, work, truth, margin=seat.convict):
            return GUILTY
        return EXCUSED if hidden else FALSE_CLAIM

    def undecided(self, tried: Tried) -> Consequence:
        """Mode `exact`: nobody, for more of the voters are missing than the bound on absences allows."""
        return NOTHING if tried.config.validation == "exact" else false_accusation(tried)


class Undisclosed(WrongGradient):
    """Mode `tolerant`: the accused did not show its validator what it committed to. Then it shows it to everybody.

    It never costs the validator its place, since nobody can prove what it was not sent.
    """

    name, accuser_shows, false_costs = "undisclosed", False, False

    def has_cause(self, seat: Seat, record: StepRecord, about: StepRecord, accuser: int, claim: Claim) -> bool:
        tolerant = seat.config.validation == "tolerant"
        return tolerant and super().has_cause(seat, record, about, accuser, claim)

    def shown(self, seat: Seat, about: StepRecord, claim: Claim, accusers: Sequence[int]) -> list[Packet]:
        return parts_of(about, seat.id, about.own) if claim.accused == seat.id and about.own is not None else []

    def undecided(self, tried: Tried) -> Consequence:
        """The accused; of one that is away the owners that are here, for what it had sent them was theirs to show."""
        shows = tried.record.attends(tried.claim.accused)
        if shows:
            return undelivered(tried, {tried.claim.accused}, {piece.author for piece in tried.unseen})
        return undelivered(tried, (), {tried.about.owner(piece.part) for piece in tried.unseen})


class Unchecked(Kind):
    """A validator could not check its target, which is on probation: its own gradient was late, or is not finite.

    Nobody goes for it, and nobody can tell whether it is true. Without it such a validator would have found nothing,
    and so have cleared a newcomer that may have computed nothing (`count_probation` in `join.py`).
    """

    name = "unchecked"
    last_step = True
    needs_answer = False
    trial = False
    accuses = False

    def has_cause(self, seat: Seat, record: StepRecord, about: StepRecord, accuser: int, claim: Claim) -> bool:
        on_probation = claim.accused in record.standings and claim.part == NOBODY
        return on_probation and record.assignments.get(accuser) == claim.accused


class Misreport(Kind):
    """V1: norm, size or s is not what the accused's part gives. Raised by the part's owner, who shows the part."""

    name = "misreport"

    def has_cause(self, seat: Seat, record: StepRecord, about: StepRecord, accuser: int, claim: Claim) -> bool:
        said = about.reports.get(claim.accused)
        announced = about.announced.get(claim.part)
        return (
            about.owner(claim.part) == accuser
            and said is not None
            and announced is not None
            and claim.accused in announced.senders
            and claim.part not in said.missing
            and about.held(claim.part)
        )

    def pieces(
        self, seat: Court, about: Settled, now: Settled, claim: Claim, accusers: Sequence[int]
    ) -> tuple[Piece, ...]:
        return (Piece("part", claim.accused, about.step, claim.part), announced_aggregate(about, claim.part))

    def shown(self, seat: Seat, about: StepRecord, claim: Claim, accusers: Sequence[int]) -> list[Packet]:
        packet = about.received.get(claim.part, {}).get(claim.accused)
        return [packet] if seat.id in accusers and packet is not None else []

    def verdict(
        self, seat: Court, about: Settled, claim: Claim, pieces: Sequence[Piece], table: Table, truths: Truths
    ) -> str:
        found = values_shown(pieces, table)
        if found is None:
            return EXCUSED
        row, value = found
        [true] = part_scalars(seat, about, value, [row], claim.part)
        said = reported(about.reports[claim.accused], claim.part)
        wrong = scalars_differ(said, true, about.tau, seat.convict * seat.config.scalar_tol)
        return GUILTY if wrong else FALSE_CLAIM


class WrongAggregate(Kind):
    """a[j] is not CenteredClip of the parts that its owner listed.

    About the step at hand nobody raises it: V2 and V3 put the part on trial, by broadcasts alone. About the step before
    anybody may once a reporter on the part has been convicted of its work: its cooked report may have hidden it.

    In that case an owner that does not show the rows, and in mode `exact` need not be here to, can be convicted without
    them. It held the reporter's row and its own aggregate. So if it was honest it saw that the report was false, and
    accused the reporter in that step, after which one of the two was no longer there.
    """

    name = "wrong_aggregate"
    last_step = True
    needs_answer = False
    accuser_shows = False
    second_round = True
    false_costs = False
    about_part = True

    def has_cause(self, seat: Seat, record: StepRecord, about: StepRecord, accuser: int, claim: Claim) -> bool:
        announced = about.announced.get(claim.part)
        if announced is None or about.owner(claim.part) != claim.accused or not about.held(claim.part):
            return False
        if claim.accused not in record.active:
            return False  # it was removed in the step before
        if seat.config.validation == "tolerant" and not record.attends(claim.accused):
            return False
        return any(record.expelled.get(i) in WORK_KINDS for i in announced.senders)

    def pieces(
        self, seat: Court, about: Settled, now: Settled, claim: Claim, accusers: Sequence[int]
    ) -> tuple[Piece, ...]:
        rows = (Piece("part", sender, about.step, claim.part) for sender in about.announced[claim.part].senders)
        return (*rows, announced_aggregate(about, claim.part))

    def shown(self, seat: Seat, about: StepRecord, claim: Claim, accusers: Sequence[int]) -> list[Packet]:
        received = about.received.get(claim.part, {})
        return [received[sender] for sender in sorted(received)] if claim.accused == seat.id else []

    def verdict(
        self, seat: Court, about: Settled, claim: Claim, pieces: Sequence[Piece], table: Table, truths: Truths
    ) -> str:
        found = values_shown(pieces, table)
        if found is not None:
            *rows, value = found
            right = aggregate_is_right(seat.config, value, torch.stack(rows), about.tau, margin=seat.convict)
            return FALSE_CLAIM if right else GUILTY
        overlooked = any(_overlooked(seat, about, claim.part, i, table, truth) for i, truth in truths.items())
        return GUILTY if overlooked else EXCUSED

    def undecided(self, tried: Tried) -> Consequence:
        """The owner, and the senders that did not show their rows either. An owner that is away owes no evidence."""
        if not tried.record.attends(tried.claim.accused):
            return NOTHING
        return undelivered(tried, {tried.claim.accused}, {piece.author for piece in tried.unseen})


OVERLOOKED = 2 * ACCUSE
"""V1: multiple of the tolerance above which an honest owner has certainly accused, whatever rounding did."""


def _overlooked(seat: Court, about: Settled, part: int, reporter: int, table: Table, truth: Truth) -> bool:
    """Whether the owner of `part` let pass what `reporter` said about it, which was false by far.

    Only if that part of the true gradient is what the reporter committed to: so this is what the owner had of it.
    """
    said, found = about.reports.get(reporter), values_shown([announced_aggregate(about, part)], table)
    if said is None or found is None:
        return False
    if reporter not in about.announced[part].senders or part in said.missing or not is_finite(truth.gradient):
        return False
    true_parts = seat.commitments.parts(reporter, about.step, truth.gradient, about.cut)
    if true_parts[part] != about.commits[reporter].digests[part]:
        return False
    [true] = part_scalars(seat, about, found[0], [about.cut.view(truth.gradient, part)], part)
    return scalars_differ(reported(said, part), true, about.tau, OVERLOOKED * seat.config.scalar_tol)


class Bad(Kind):
    """A packet that its sender signed is not what it committed to. Raised by the recipient, which shows the packet."""

    what: ClassVar[str]
    numeric = False

    def pieces(
        self, seat: Court, about: Settled, now: Settled, claim: Claim, accusers: Sequence[int]
    ) -> tuple[Piece, ...]:
        return tuple(Piece(self.what, claim.accused, about.step, claim.part, by) for by in accusers)

    def shown(self, seat: Seat, about: StepRecord, claim: Claim, accusers: Sequence[int]) -> list[Packet]:
        packet = about.suspects.get((self.name, claim.accused, claim.part))
        return [packet] if seat.id in accusers and packet is not None else []

    def verdict(
        self, seat: Court, about: Settled, claim: Claim, pieces: Sequence[Piece], table: Table, truths: Truths
    ) -> str:
        return GUILTY if any(piece in table for piece in pieces) else FALSE_CLAIM


class _AboutPart(Kind):
    """What only the owner of a part can know about a sender's part."""

    def has_cause(self, seat: Seat, record: StepRecord, about: StepRecord, accuser: int, claim: Claim) -> bool:
        return about.owner(claim.part) == accuser and claim.accused in about.workers


class _AboutAggregate(Kind):
    """What a peer knows that said before the coin that it lacks the aggregate."""

    def has_cause(self, seat: Seat, record: StepRecord, about: StepRecord, accuser: int, claim: Claim) -> bool:
        lacked = claim.part in about.missing.get(accuser, ())
        return lacked and claim.part in about.announced and about.owner(claim.part) == claim.accused


class BadPart(Bad, _AboutPart):
    name, what = "bad_part", "part"


class BadAggregate(Bad, _AboutAggregate):
    name, what = "bad_aggregate", "aggregate"


class WithheldPart(_AboutPart):
    name, trial = "withheld_part", False


class WithheldAggregate(_AboutAggregate):
    name, trial = "withheld_aggregate", False


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        WrongGradient(),
        Undisclosed(),
        Unchecked(),
        Misreport(),
        WrongAggregate(),
        BadPart(),
        BadAggregate(),
        WithheldPart(),
        WithheldAggregate(),
    )
}
WORK_KINDS = frozenset({"wrong_gradient", "undisclosed", "undelivered"})
"""Convictions after which the reports of the convicted, in the step before, may be false.

Not `misreport`: it is about the step at hand, and says nothing of the step before. What is shown for it corrects the
report on the accuser's own part alone, so that the only aggregate in doubt is that of the owner who has denounced it.
"""


def admissible(seat: Seat, record: StepRecord, accuser: int, claim: Claim, attempt: int) -> bool:
    """Whether, by the broadcasts alone, an honest peer in the place of `accuser` could raise `claim` in this round."""
    kind = KINDS[claim.kind]
    about = seat.last if kind.last_step else record
    if about is None or claim.step != about.step or claim.accused in (accuser, NOBODY):
        return False
    if (attempt > 0) != kind.second_round:
        return False
    if kind.needs_answer and not record.attends(claim.accused):
        return False
    return kind.has_cause(seat, record, about, accuser, claim)
