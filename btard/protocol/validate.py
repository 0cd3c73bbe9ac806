"""What a validator checks of its target's work in the step before, and how judges check it again."""

from __future__ import annotations

import torch

from btard.protocol.messages import Claim, is_finite
from btard.protocol.record import Settled
from btard.protocol.report import Truth, gradient_report
from btard.protocol.seat import Court, Seat
from btard.protocol.tolerance import too_far
from btard.protocol.verify import ACCUSE, reported, scalars_differ


def work_is_wrong(
    seat: Court, about: Settled, target: int, committed: torch.Tensor, truth: Truth, *, margin: float
) -> bool:
    """Whether what `target` `committed` to [d], or its reports on it, are not those of the true gradient.

    `margin`: multiple of the tolerances. Mode `exact`: `committed` is that, or else hashes have decided already.
    """
    if committed is not truth.gradient and too_far(seat.config, committed, truth.gradient, margin=margin):
        return True
    if target not in about.reports:
        return False
    said, true = about.reports[target], gradient_report(seat, about, truth.aggregates, target, committed)
    tol = margin * seat.config.scalar_tol
    return any(
        scalars_differ(reported(said, j), reported(true, j), about.tau, tol)
        for j in range(about.cut.k)
        if about.held(j) and j not in said.missing and j not in true.missing
    )


def validate(seat: Seat, gradient: torch.Tensor | None) -> list[Claim]:
    """A validator's accusations: its target of the step before, if the recomputed `gradient` [d] shows it wrong.

    Mode `tolerant`: a target that is not here to show what it committed to is not accused.
    """
    about, record, target = seat.last, seat.current, seat.current.assignments.get(seat.id)
    if about is None or target is None or gradient is None or target in about.expelled or target in record.expelled:
        return []
    if not is_finite(gradient) or target not in about.commits:
        return []
    committed: torch.Tensor | None
    if seat.config.validation == "exact":
        honest = seat.commitments.parts(target, about.step, gradient, about.cut)
        committed = gradient if honest == about.commits[target].digests else None
    elif target not in (*record.members, *record.newcomers):
        return []
    else:
        committed = record.disclosed.get(target)
        if committed is None:
            return [Claim(about.step, target, "undisclosed")]
    truth = Truth(gradient, about.aggregates)
    wrong = committed is None or work_is_wrong(seat, about, target, committed, truth, margin=ACCUSE)
    return [Claim(about.step, target, "wrong_gradient")] if wrong else []
