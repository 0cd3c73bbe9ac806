"""Section 3, phases 6 and 8: what a validator checks, and how validators and targets are drawn from the coin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from btard.protocol.commit import part_digests
from btard.protocol.hashing import stream
from btard.protocol.messages import Claim, Report
from btard.protocol.record import StepRecord
from btard.protocol.report import gradient_report
from btard.protocol.verify import ACCUSE, scalars_differ

if TYPE_CHECKING:
    from btard.protocol.peer import Peer


def draw_validators(coin: bytes, workers: tuple[int, ...], active: tuple[int, ...], validators: int) -> dict[int, int]:
    """V_{t+1} as {validator: target}: `validators` pairs drawn from r^t, all peers in them distinct.

    Targets come uniformly from `workers` (W_t without those already banned), validators uniformly from the other
    peers of `active` (A_{t+1}). Fewer pairs where there are too few peers; at least one peer is left to work.
    """
    rng = stream("validators", coin)
    candidates = [peer for peer in workers if peer in active]
    count = max(0, min(validators, len(candidates), (len(active) - 1) // 2))
    targets = [candidates[i] for i in rng.choice(len(candidates), count, replace=False)] if count else []
    others = [peer for peer in active if peer not in targets]
    chosen = [others[i] for i in rng.choice(len(others), count, replace=False)] if count else []
    return dict(sorted(zip(chosen, targets, strict=True)))


def work_is_wrong(peer: Peer, record: StepRecord, target: int, gradient: torch.Tensor, *, margin: float) -> bool:
    """Whether `target`'s commitments or reports of `record`'s step are not those of the honest `gradient` [d]."""
    return gradient_is_wrong(peer, record, target, gradient) or report_is_wrong(
        peer, record, target, gradient, margin=margin
    )


def gradient_is_wrong(peer: Peer, record: StepRecord, target: int, gradient: torch.Tensor) -> bool:
    """Mode `exact`: whether the committed hashes are not those of the recomputed gradient."""
    honest = part_digests(peer.config.run_id, target, record.step, gradient, record.cut)
    return honest != record.commits[target].digests


def report_is_wrong(peer: Peer, record: StepRecord, target: int, gradient: torch.Tensor, *, margin: float) -> bool:
    """Whether the reported norms and products are not those of `gradient`."""
    if target not in record.reports:
        return False
    said, true = record.reports[target], gradient_report(peer, record, target, gradient)
    return any(
        scalars_differ(
            said.norms[j],
            said.products[j],
            true.norms[j],
            true.products[j],
            peer.config.tau,
            margin * peer.config.scalar_tol,
        )
        for j in range(record.cut.k)
        if j not in said.missing and j not in true.missing
    )


def validate(peer: Peer, gradient: torch.Tensor | None) -> list[Claim]:
    """A validator's accusations: its target of the step before, if the recomputed `gradient` [d] shows it wrong."""
    record, target = peer.last, peer.current.assignments.get(peer.id)
    if record is None or target is None or gradient is None or target in record.expelled:
        return []
    wrong = work_is_wrong(peer, record, target, gradient, margin=ACCUSE)
    return [Claim(record.step, target, "wrong_gradient")] if wrong else []


def corrected_reports(peer: Peer, record: StepRecord, honest: dict[int, torch.Tensor]) -> dict[int, Report]:
    """The step's reports with those of convicted peers replaced by the truth where it is known.

    `honest`: convicted peer -> recomputed gradient. A peer that committed to another gradient than its batch's
    leaves nothing to correct with: what it sent is known to the aggregators alone.
    """
    corrected = dict(record.reports)
    for target, gradient in honest.items():
        if target in corrected and not gradient_is_wrong(peer, record, target, gradient):
            corrected[target] = gradient_report(peer, record, target, gradient)
    return corrected
