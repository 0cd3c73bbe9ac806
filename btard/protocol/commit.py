"""Phases compute and commit: the gradient of the public batch, the hashes of its parts, and who is in the step."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from btard.protocol.behaviour import sent_by
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute, Effect, Idle, Purpose
from btard.protocol.hashing import batch_seed
from btard.protocol.heal import candidates
from btard.protocol.hearing import Heard
from btard.protocol.messages import NOBODY, UNKNOWN, Commit, TimedCommit
from btard.protocol.record import StepRecord
from btard.protocol.scalars import keep_own
from btard.protocol.seat import Seat
from btard.protocol.signed import is_finite
from btard.protocol.split import Split


class CutOff(RuntimeError):
    """This peer cannot know how the step ended for the others: it must take over their state to continue."""


class NoQuorum(CutOff):
    """Half of the peers or more were not heard in a step: a peer that goes on may be cut off from the majority."""


class Incomplete(CutOff):
    """An aggregate that counts did not reach this peer. Only a peer outside the step cannot ask for it."""


class NoGradient(RuntimeError):
    """Nobody has a gradient: all workers are absent, or the training has diverged and there is none."""


G = TypeVar("G", torch.Tensor, torch.Tensor | None)


def clip_gradient(gradient: G, clip_lambda: float | None) -> G:
    """BTARD-Clipped-SGD: `gradient` [d] scaled to norm at most `clip_lambda`; unchanged if that is None.

    None, for a peer that was not ready in time, stays None.
    """
    if clip_lambda is None or gradient is None:
        return gradient
    norm = float(torch.linalg.vector_norm(gradient))
    return gradient * (clip_lambda / norm) if norm > clip_lambda else gradient


def compute(seat: Seat, record: StepRecord) -> Generator[Effect, Any, torch.Tensor | None]:
    """A worker's gradient [d], or what a validator gets when it recomputes its target's of the step before.

    None for a validator whose target fell out and for a peer with nothing to do.
    """
    target = record.assignments.get(seat.id)
    if target is None:
        request = Compute(record.step, seat.id, seat.seed_of(record.step, seat.id))
        gradient = yield seat.behaviour_at(record).request(seat.context(record), request)
        return clip_gradient(gradient, seat.config.clip_lambda)
    if seat.last is None or target not in seat.last.commits:
        yield Idle()
        return None
    seed = batch_seed(seat.config.run_id, seat.last.step, target, seat.last.previous_coin)
    gradient = yield Compute(seat.last.step, target, seed, Purpose.VALIDATE)
    return clip_gradient(gradient, seat.config.clip_lambda)


@dataclass
class RollCall:
    """What this peer said at the roll call, and what it heard."""

    gradient: torch.Tensor | None
    """[d], perhaps a bad one; None if it has none."""
    digests: tuple[bytes, ...]
    after: bytes
    """This peer's `Commit.after`."""
    heard: Heard

    def of_this_history(self, commits: Mapping[int, Commit]) -> dict[int, Commit]:
        """The `commits` without those of peers that have agreed on something else in `join`: they are away."""
        return {peer: said for peer, said in commits.items() if said.after == self.after}


def commit(seat: Seat, record: StepRecord, gradient: torch.Tensor | None) -> Generator[Effect, Any, RollCall]:
    """Broadcast the hashes of the parts; hear who is here and works, as far as this peer can tell by itself.

    This is the roll call. Everybody says something: a worker the hashes of its parts; a validator, and a worker without
    a gradient, that it is here. A worker has none if it was too slow, or if its own is not finite: to send NaN would be
    a violation, to have computed it is none. Its part is skipped in this step. Newcomers commit to as many parts and
    remain outside W_t.
    """
    record.split = Split(seat.d, len(record.planned), seat.config.halved)
    after = b"" if seat.config.probation is None else seat.ledger.head
    payload = _said(seat, (), after) if seat.id in record.active else None
    digests: tuple[bytes, ...] = ()
    rounded = None if gradient is None else record.split.committed(gradient)
    if rounded is None or not is_finite(rounded):
        gradient = None
    if gradient is not None and seat.id in (*record.planned, *record.newcomers):
        sent = sent_by(seat.behaviour_at(record), seat.context(record), gradient)
        honest = sent is gradient
        gradient = rounded if honest and rounded is not None else record.split.committed(sent)
        digests = seat.commitments.parts(seat.id, record.step, gradient, record.split)
        if honest or is_finite(gradient):
            seat.commitments.known_sound(digests)  # one look at the whole instead of one at each part
        chosen = seat.behaviour_at(record).commit(seat.context(record), digests)
        payload = _said(seat, chosen, after) if chosen is not None else None
    heard = yield from seat.say(record, "commit", _kind(seat), payload)
    said = RollCall(gradient, digests, after, heard)
    _enrol(record, said.of_this_history(seat.so_far(record, heard, _kind(seat))))
    return said


def call_roll(seat: Seat, record: StepRecord, said: RollCall) -> None:
    """Once all agree on the commitments: who is here (M_t) and works (W_t).

    Errors: NoQuorum if no more than half of A_t are here. NoGradient if nobody of them works, or for long nobody whose
    work counts, unless this step can go back to an earlier state.
    """
    commits = seat.settled(record, said.heard, _kind(seat), expected=())
    for sender, message in commits.items():
        works = record.cut.k if sender not in record.assignments else 0
        if len(message.digests) not in (0, works):
            seat.expel(record, sender, "malformed_commit")
    commits = said.of_this_history(commits)
    record.here = tuple(peer for peer in record.active if peer in commits)
    if 2 * len(record.here) <= len(record.active):
        raise NoQuorum(
            f"step {record.step}: heard {len(record.here)} of {len(record.active)} peers, more than half are needed"
        )
    _enrol(record, commits)
    if not record.workers and not candidates(seat.config, seat.ledger.entries, record.step):
        raise NoGradient("no worker committed to a gradient in this step: all are absent, or the training has diverged")
    record.weight = _weight(seat.config, record, commits)
    _count_absences(seat, record)
    if said.digests and record.commits.get(seat.id) == Commit(said.digests):
        record.own = said.gradient
        keep_own(seat, record)


def _enrol(record: StepRecord, commits: Mapping[int, Commit]) -> None:
    """The workers and owners of the step, by these commitments."""
    k = record.cut.k
    record.commits = {
        peer: Commit(said.digests)
        for peer, said in commits.items()
        if len(said.digests) == k and peer not in record.expelled and peer not in record.assignments
    }
    record.workers = tuple(peer for peer in record.planned if peer in record.commits)
    record.owners = tuple(peer if peer in record.commits else NOBODY for peer in record.planned)


def _kind(seat: Seat) -> type[Commit]:
    return Commit if seat.config.max_away is None else TimedCommit


def _said(seat: Seat, digests: tuple[bytes, ...], after: bytes) -> Commit:
    """What this peer says at the roll call."""
    return Commit(digests, after) if seat.config.max_away is None else TimedCommit(digests, after, seat.elapsed)


MISSED, PRESENT = 2, 1
"""What a missed step adds to a peer's count of absences, and what a step in which it did its part subtracts."""


def _weight(config: ProtocolConfig, record: StepRecord, commits: Mapping[int, Commit]) -> int:
    """How much this step counts for peers that miss it: no more than one step, and no more than its time.

    So who is away in a row is gone after both `max_absences` steps and `max_away` seconds. The time of the step before
    is the (b_t+1)-th shortest of those that members tell: liars alone can put it neither below nor above what honest
    ones have measured. Everybody has heard the same, so everybody counts alike, whatever its own clock says. Without so
    many that know the time a step counts as a whole one.
    """
    if config.max_away is None:
        return config.whole_step
    told = sorted(
        said.elapsed
        for peer, said in commits.items()
        if isinstance(said, TimedCommit) and said.elapsed != UNKNOWN and peer in record.active
    )
    if len(told) <= record.byzantine:
        return config.whole_step
    in_time = -(-config.longest_absence * told[record.byzantine] // int(1000 * config.max_away))  # more than none
    return min(config.whole_step, in_time)


def _count_absences(seat: Seat, record: StepRecord) -> None:
    """A peer that is away, or here without a gradient, loses the step; a peer that is so too often is gone.

    It is after `max_absences` steps in a row, and in the long run if it misses more than every third step: an empty
    place costs the others a part of the gradient.

    Not in a step in which all that work may be Byzantine: the others may be all honest ones, late together, or in a
    state in which no gradient is finite. No part counts there, so nobody's place matters. Counts go on up to the limit.
    Where more than b_t peers are here and have reached it, an honest one has had no gradient for that long: the run
    stops, unless this step can go back to an earlier state. Liars alone, who could work, are too few to stop it.
    """
    limit, gone = MISSED * seat.config.longest_absence, []
    planned = record.planned
    for peer in record.active:
        missed = peer not in (record.commits if peer in planned else record.here or ())
        change = MISSED * record.weight if missed else -PRESENT * record.weight
        seat.absences[peer] = min(limit, max(0, seat.absences.get(peer, 0) + change))
        if missed and seat.absences[peer] == limit:
            gone.append(peer)
    if record.honest_work:
        for peer in gone:
            seat.expel(record, peer, "gone")
        return
    stuck = set(gone).intersection(record.members)
    if len(stuck) > record.byzantine and not candidates(seat.config, seat.ledger.entries, record.step):
        raise NoGradient(
            f"step {record.step}: {len(stuck)} peers are here and have had no gradient for long, and no more than "
            f"{record.byzantine} have one, who may be Byzantine: the training has diverged, or all are too slow"
        )
