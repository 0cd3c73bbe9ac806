"""How a validator checks its target's work in the step before, and how judges check it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from btard.protocol.half import values_of
from btard.protocol.messages import Claim
from btard.protocol.record import Settled
from btard.protocol.scalars import Truth, gradient_report
from btard.protocol.seat import ACCUSE, Court, Seat
from btard.protocol.signed import is_finite
from btard.protocol.tolerance import norm_of, reach, shown_too_far, too_far
from btard.protocol.verify import reported, scalars_differ


class Work(NamedTuple):
    """What a peer committed to, as far as it was shown."""

    gradient: torch.Tensor
    """[d]. In the parts that were not shown, the judge's own gradient."""
    unseen: frozenset[int] = frozenset()
    """The parts that were shown."""


def work_shown(about: Settled, shown: Mapping[int, torch.Tensor], own: torch.Tensor) -> Work:
    """What somebody committed to: the parts that were `shown`, and the other parts from this peer's `own` gradient.

    `shown`: part -> its body, in the form in which it travels.
    """
    parts = [values_of(shown[j]).to(own.device) if j in shown else about.cut.view(own, j) for j in range(about.cut.k)]
    return Work(torch.cat(parts), frozenset(range(about.cut.k)) - shown.keys())


def work_is_wrong(seat: Court, about: Settled, target: int, work: Work, truth: Truth, *, margin: float) -> bool:
    """Whether what `target` committed to, or its reports on it, are not those of the true gradient.

    Of parts that were not shown, the reports have to be those of a gradient within the tolerance. `margin`: multiple of
    the tolerances. Mode `exact`: what it committed to is the true gradient, or else hashes have decided already.
    """
    config, apart = seat.config, 0.0
    if work.unseen:
        norm = norm_of(truth.gradient)
        apart = reach(config.gradient_tol, margin=margin) * norm
        seen = [j for j in range(about.cut.k) if j not in work.unseen]
        shown, mine = (
            torch.cat([about.cut.view(x, j) for j in seen] or [x[:0]]) for x in (work.gradient, truth.gradient)
        )
        if shown_too_far(config, shown, mine, norm, margin=margin):
            return True
    elif work.gradient is not truth.gradient and too_far(config, work.gradient, truth.gradient, margin=margin):
        return True
    if target not in about.reports:
        return False
    exact, said = config.validation == "exact", about.reports[target]
    true = gradient_report(seat, about, truth.aggregates, target, work.gradient, committed=exact)
    tol = margin * config.scalar_tol
    return any(
        scalars_differ(reported(said, j), reported(true, j), about.tau, tol, apart if j in work.unseen else 0.0)
        for j in range(about.cut.k)
        if about.held(j) and j not in said.missing and j not in true.missing
    )


def validate(seat: Seat, gradient: torch.Tensor | None) -> list[Claim]:
    """What a validator claims: against its target of the step before, if the `gradient` [d] shows its work wrong.

    Without a gradient of its own, or with one that is not finite, it has not checked it. It says so of a newcomer,
    which it would else have cleared. Of a worker nobody keeps whether it was found right.

    Mode `tolerant`: or if I was not shown all that there was to show. Of a target that is away that is what it had sent
    to others. A newcomer sends nothing to anybody: if it is away there is nothing to check it by.
    """
    about, record, target = seat.last, seat.current, seat.current.assignments.get(seat.id)
    if about is None or target is None or target in about.expelled or target in record.expelled:
        return []
    if target not in about.commits:
        return []
    unchecked = [Claim(about.step, target, "unchecked")] if target in record.standings else []
    gradient = None if gradient is None else about.cut.committed(gradient)
    if gradient is None or not is_finite(gradient):
        return unchecked
    truth = Truth(gradient, about.aggregates)
    accusation = [Claim(about.step, target, "wrong_gradient")]
    if seat.config.validation == "exact":
        honest = seat.commitments.parts(target, about.step, gradient, about.cut)
        right = honest == about.commits[target].digests
        return (
            accusation if not right or work_is_wrong(seat, about, target, Work(gradient), truth, margin=ACCUSE) else []
        )
    owed = about.parts_to_show(target, record)
    if not owed:
        return unchecked
    hidden = not record.disclosed.keys() >= set(owed)
    if hidden and record.attends(target):
        return [Claim(about.step, target, "undisclosed")]
    work = work_shown(about, record.disclosed, gradient)
    if work_is_wrong(seat, about, target, work, truth, margin=ACCUSE):
        return accusation
    return [Claim(about.step, target, "undisclosed")] if hidden else []
