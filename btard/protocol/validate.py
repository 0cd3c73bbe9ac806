"""Phase validate: what a validator checks of its target's work in the step before."""

from __future__ import annotations

import torch

from btard.protocol.messages import Claim, Report, is_finite
from btard.protocol.record import StepRecord
from btard.protocol.report import gradient_report
from btard.protocol.seat import Seat
from btard.protocol.tolerance import too_far
from btard.protocol.verify import ACCUSE, scalars_differ


def work_is_wrong(seat: Seat, record: StepRecord, target: int, gradient: torch.Tensor, *, margin: float) -> bool:
    """Whether `target`'s commitments or reports of `record`'s step are not those of the honest `gradient` [d].

    `margin`: multiple of the tolerances. What a peer that commits to something else reports does not matter any more.
    """
    committed = committed_gradient(seat, record, target, gradient)
    if committed is None:
        return True
    if committed is not gradient and too_far(seat.config, committed, gradient, margin=margin):
        return True
    return report_is_wrong(seat, record, target, committed, margin=margin)


def committed_gradient(seat: Seat, record: StepRecord, target: int, gradient: torch.Tensor) -> torch.Tensor | None:
    """What `target` committed to at `record`'s step, [d], as far as I know: what its reports have to fit.

    Mode `exact`: the recomputed `gradient` if it has the committed hashes. Mode `tolerant`: what was disclosed.
    """
    if seat.config.validation == "tolerant":
        return seat.current.disclosed.get(target)
    honest = seat.commitments.parts(target, record.step, gradient, record.cut)
    return gradient if honest == record.commits[target].digests else None


def report_is_wrong(seat: Seat, record: StepRecord, target: int, gradient: torch.Tensor, *, margin: float) -> bool:
    """Whether the reported norms and products are not those of the committed `gradient`."""
    if target not in record.reports:
        return False
    said, true = record.reports[target], gradient_report(seat, record, target, gradient)
    return any(
        scalars_differ(
            said.norms[j],
            said.products[j],
            true.norms[j],
            true.products[j],
            record.tau,
            margin * seat.config.scalar_tol,
        )
        for j in range(record.cut.k)
        if record.held(j) and j not in said.missing and j not in true.missing
    )


def validate(seat: Seat, gradient: torch.Tensor | None) -> list[Claim]:
    """A validator's accusations: its target of the step before, if the recomputed `gradient` [d] shows it wrong."""
    record, target = seat.last, seat.current.assignments.get(seat.id)
    if record is None or target is None or gradient is None or target in record.expelled:
        return []
    if seat.config.validation == "tolerant":
        if not is_finite(gradient):
            return []  # nothing to compare with
        if target not in seat.current.disclosed:
            return [Claim(record.step, target, "undisclosed")]
    wrong = work_is_wrong(seat, record, target, gradient, margin=ACCUSE)
    return [Claim(record.step, target, "wrong_gradient")] if wrong else []


def corrected_reports(seat: Seat, record: StepRecord, honest: dict[int, torch.Tensor]) -> dict[int, Report]:
    """The step's reports with those of convicted peers replaced by the truth where it is known.

    `honest`: convicted peer -> recomputed gradient. In mode `exact` a peer that committed to another gradient than its
    batch's leaves nothing to correct with: what it sent is known to the aggregators alone.
    """
    corrected = dict(record.reports)
    for target, gradient in honest.items():
        committed = committed_gradient(seat, record, target, gradient) if target in corrected else None
        if committed is not None:
            corrected[target] = gradient_report(seat, record, target, committed)
    return corrected
