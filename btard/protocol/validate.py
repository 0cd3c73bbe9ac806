"""Section 3, phases 6 and 8: what a validator checks, and how validators and targets are drawn from the coin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from btard.protocol.commit import part_digests
from btard.protocol.hashing import stream
from btard.protocol.messages import Claim, Report, is_finite
from btard.protocol.record import StepRecord
from btard.protocol.remembered import remembered
from btard.protocol.report import gradient_report
from btard.protocol.tolerance import too_far
from btard.protocol.verify import ACCUSE, scalars_differ

if TYPE_CHECKING:
    from btard.protocol.peer import Peer


def draw_validators(coin: bytes, workers: tuple[int, ...], active: tuple[int, ...], validators: int) -> dict[int, int]:
    """V_{t+1} as {validator: target}: `validators` pairs drawn from r^t, all peers in them distinct.

    Targets come uniformly from `workers` (W_t without those already banned), validators uniformly from the other
    peers of `active` (A_{t+1} without those who are away). Fewer pairs where there are too few peers; at least one peer
    is left to work.
    """
    return dict(_pairs(coin, workers, active, validators))


@remembered(4)
def _pairs(
    coin: bytes, workers: tuple[int, ...], active: tuple[int, ...], validators: int
) -> tuple[tuple[int, int], ...]:
    rng = stream("validators", coin)
    candidates = [peer for peer in workers if peer in active]
    count = max(0, min(validators, len(candidates), (len(active) - 1) // 2))
    targets = [candidates[i] for i in rng.choice(len(candidates), count, replace=False)] if count else []
    others = [peer for peer in active if peer not in targets]
    chosen = [others[i] for i in rng.choice(len(others), count, replace=False)] if count else []
    return tuple(sorted(zip(chosen, targets, strict=True)))


def work_is_wrong(peer: Peer, record: StepRecord, target: int, gradient: torch.Tensor, *, margin: float) -> bool:
    """Whether `target`'s commitments or reports of `record`'s step are not those of the honest `gradient` [d].

    `margin`: multiple of the tolerances. What a peer that commits to something else reports does not matter any more.
    """
    committed = committed_gradient(peer, record, target, gradient)
    if committed is None:
        return True
    if committed is not gradient and too_far(peer.config, committed, gradient, margin=margin):
        return True
    return report_is_wrong(peer, record, target, committed, margin=margin)


def committed_gradient(peer: Peer, record: StepRecord, target: int, gradient: torch.Tensor) -> torch.Tensor | None:
    """What `target` committed to at `record`'s step, [d], as far as I know: what its reports have to fit.

    Mode `exact`: the recomputed `gradient` if it has the committed hashes. Mode `tolerant`: what was disclosed.
    """
    if peer.config.validation == "tolerant":
        return peer.current.disclosed.get(target)
    honest = part_digests(peer.config.run_id, target, record.step, gradient, record.cut)
    return gradient if honest == record.commits[target].digests else None


def report_is_wrong(peer: Peer, record: StepRecord, target: int, gradient: torch.Tensor, *, margin: float) -> bool:
    """Whether the reported norms and products are not those of the committed `gradient`."""
    if target not in record.reports:
        return False
    said, true = record.reports[target], gradient_report(peer, record, target, gradient)
    return any(
        scalars_differ(
            said.norms[j],
            said.products[j],
            true.norms[j],
            true.products[j],
            record.tau,
            margin * peer.config.scalar_tol,
        )
        for j in range(record.cut.k)
        if record.held(j) and j not in said.missing and j not in true.missing
    )


def validate(peer: Peer, gradient: torch.Tensor | None) -> list[Claim]:
    """A validator's accusations: its target of the step before, if the recomputed `gradient` [d] shows it wrong."""
    record, target = peer.last, peer.current.assignments.get(peer.id)
    if record is None or target is None or gradient is None or target in record.expelled:
        return []
    if peer.config.validation == "tolerant":
        if not is_finite(gradient):
            return []  # nothing to compare with
        if target not in peer.current.disclosed:
            return [Claim(record.step, target, "undisclosed")]
    wrong = work_is_wrong(peer, record, target, gradient, margin=ACCUSE)
    return [Claim(record.step, target, "wrong_gradient")] if wrong else []


def corrected_reports(peer: Peer, record: StepRecord, honest: dict[int, torch.Tensor]) -> dict[int, Report]:
    """The step's reports with those of convicted peers replaced by the truth where it is known.

    `honest`: convicted peer -> recomputed gradient. In mode `exact` a peer that committed to another gradient than its
    batch's leaves nothing to correct with: what it sent is known to the aggregators alone.
    """
    corrected = dict(record.reports)
    for target, gradient in honest.items():
        committed = committed_gradient(peer, record, target, gradient) if target in corrected else None
        if committed is not None:
            corrected[target] = gradient_report(peer, record, target, committed)
    return corrected
