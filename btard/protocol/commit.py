"""Phases compute and commit of Algorithm 1: compute the gradient of the public batch and commit to its parts."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

import torch

from btard.protocol.effects import Compute, Effect, Idle, Purpose
from btard.protocol.hashing import batch_seed
from btard.protocol.messages import Commit, is_finite
from btard.protocol.record import Split, StepRecord
from btard.protocol.seat import Seat


class NoGradient(RuntimeError):
    """Nobody has a gradient: all workers are absent, or the training has diverged and there is none."""


G = TypeVar("G", torch.Tensor, torch.Tensor | None)


def clip_gradient(gradient: G, clip_lambda: float | None) -> G:
    """BTARD-Clipped-SGD: `gradient` [d] scaled to norm at most `clip_lambda`; itself where that is None.

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


def commit(
    seat: Seat, record: StepRecord, gradient: torch.Tensor | None
) -> Generator[Effect, Any, torch.Tensor | None]:
    """Broadcast the hashes of my parts; W_t becomes the planned workers who did. Returns my (perhaps bad) gradient.

    Newcomers commit to as many parts and remain outside W_t.
    A worker that misses this phase is absent for the step, and its part goes to the next worker. So is an
    honest one whose gradient is not finite: to send NaN would be a violation, to have computed it is none.
    Errors: NoGradient if nobody commits.
    """
    planned = tuple(p for p in record.active if p not in record.assignments)
    payload = None
    if gradient is not None and not is_finite(gradient):
        gradient = None
    if gradient is not None and seat.id in (*planned, *record.newcomers):
        gradient = seat.behaviour_at(record).gradient(seat.context(record), gradient)
        record.split = Split(seat.d, len(planned))
        digests = seat.commitments.parts(seat.id, record.step, gradient, record.split)
        chosen = seat.behaviour_at(record).commit(seat.context(record), digests)
        payload = Commit(chosen) if chosen is not None else None
    record.split = Split(seat.d, len(planned))
    commits = yield from seat.broadcast(record, "commit", Commit, payload, expected=())
    committers = (*planned, *record.newcomers)
    for sender in committers:
        if sender in commits and len(commits[sender].digests) != record.split.k:
            seat.expel(record, sender, "malformed_commit")
    record.commits = {p: commits[p] for p in committers if p in commits and p not in record.expelled}
    record.workers = tuple(p for p in planned if p in record.commits)
    record.owners = tuple(_next_worker(planned, j, record.commits) for j in range(record.split.k))
    _count_absences(seat, record, planned)
    if seat.config.validation == "tolerant" and seat.id in record.commits:
        record.own = gradient
    return gradient


def _count_absences(seat: Seat, record: StepRecord, planned: tuple[int, ...]) -> None:
    """Missing the commit phase costs the step; `max_absences` in a row mean that the peer is gone."""
    for peer in planned:
        missed = 0 if peer in record.workers else seat.absences.get(peer, 0) + 1
        seat.absences[peer] = missed
        if missed >= seat.config.max_absences:
            seat.expel(record, peer, "gone")


def _next_worker(planned: tuple[int, ...], part: int, present: dict[int, Commit]) -> int:
    """Who aggregates `part`: the worker it was planned for, or the first present one after it, cyclically."""
    for offset in range(len(planned)):
        candidate = planned[(part + offset) % len(planned)]
        if candidate in present:
            return candidate
    raise NoGradient("no worker committed to a gradient in this step: all are absent, or the training has diverged")
