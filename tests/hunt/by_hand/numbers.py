"""Attacks on reports, tolerances and the radius, and on who is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from msgspec.structs import replace

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Context
from btard.protocol.effects import Compute, Purpose
from btard.protocol.messages import Claim, Report
from btard.protocol.scalars import part_scalars
from btard.protocol.signed import Signed
from btard.task import QuadraticTask
from tests.hunt.by_hand.cohort import cohort, damage
from tests.protocol.promises import Attacker, Away, D


class CountsItselfOften(Attacker):
    """An owner that names itself `often` more times among the senders of a huge aggregate, and cooks its report."""

    def __init__(self, often: int) -> None:
        self.often, self.driver = often, list[LocalDriver]()

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(value, 1e6)

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase != "announce" or payload is None:
            return message, {}
        again = (ctx.peer,) * self.often
        parts = tuple(replace(part, senders=tuple(sorted((*part.senders, *again)))) for part in payload.parts)
        return sign(replace(payload, parts=parts)), {}

    def report(self, ctx: Context, report: Report) -> Report:
        record, seat = ctx.record, self.driver[0].peers[ctx.peer]
        sizes, norms, products = list(report.sizes), list(report.norms), list(report.products)
        for part, packets in record.received.items():
            others = [packets[i].body for i in sorted(packets) if i != ctx.peer]
            known = part_scalars(seat, record, record.aggregates[part], others, part)  # type: ignore[arg-type]
            sizes[part], norms[part] = 1e6, 0.0
            products[part] = (-sum(said.products[0] for said in known) / (1 + self.often),)
        return replace(report, sizes=tuple(sizes), norms=tuple(norms), products=tuple(products))


def counted_twice() -> str:
    attacker = CountsItselfOften(3)
    driver = cohort({1: attacker})
    attacker.driver.append(driver)
    return damage(driver, 4)


class Scaled(QuadraticTask):
    """Another machine's numerics: all gradients times `factor`."""

    def __init__(self, factor: float) -> None:
        super().__init__(D)
        self.factor = factor

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        out.mul_(self.factor)


class AtTheTolerance(Attacker):
    """Within the tolerance of most honest peers, beyond that of the one whose numbers are smallest."""

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * 1.09


def accused_at_once() -> str:
    numerics = {peer: Scaled(0.96 if peer == 0 else 1.0) for peer in range(5)}
    return damage(cohort({1: AtTheTolerance()}, validation="tolerant", tasks=numerics), 20)


def absences_stay() -> str:
    away = Away(lambda ctx: ctx.step % 5 == 4 and 2 not in ctx.assignments)
    return damage(cohort({2: away}), 30)


class NothingIsWrong(Attacker):
    """Its aggregates are off, and its reports are no numbers."""

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return value + 1.0

    def report(self, ctx: Context, report: Report) -> Report:
        return replace(report, products=((float("nan"),),) * len(report.products))


def nan_reported() -> str:
    driver = cohort({1: NothingIsWrong()})
    return damage(driver, 40) or ("40 steps without a verdict" if 1 in driver.honest[0].active else "")


class Tiny(Attacker):
    """Reports next to no distance on the fellows' parts, in steps in which half of the workers are liars."""

    def __init__(self, fellows: frozenset[int]) -> None:
        self.fellows = fellows

    def report(self, ctx: Context, report: Report) -> Report:
        record = ctx.record
        if 2 * len(self.fellows.intersection(record.workers)) < len(record.workers):
            return report
        hostile = [record.owner(part) in self.fellows for part in range(len(report.norms))]
        norms = (1e-300 if theirs else norm for theirs, norm in zip(hostile, report.norms, strict=True))
        return replace(report, norms=tuple(norms))

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return ()


def radius_of_few() -> str:
    members = frozenset({1, 3})
    away = {peer: Away(lambda ctx: ctx.step == 3 and ctx.peer not in ctx.assignments) for peer in (4, 6)}
    behaviours = {**away, **{i: Tiny(members) for i in members}}
    driver = cohort(behaviours, peers=7, tau="auto", run_id="radius 4")  # where all of them work in step 3
    broken, radius = damage(driver, 4), driver.honest[0].tau
    return broken or (f"a radius of {radius:g}" if radius < 1e-3 else "")


class Withholds(Attacker):
    """Sends its aggregate of step 2 to everybody but peer 2."""

    def active(self, step: int) -> bool:
        return step == 2

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return None if recipient == 2 else value


def zero_for_lacking() -> str:
    away = Away(lambda ctx: ctx.step == 2)
    return damage(cohort({1: Withholds(), 2: away}, validators=0), 4)


class Trades(Attacker):
    """Takes `victim` along: it keeps its aggregate from it."""

    def __init__(self, victim: int) -> None:
        self.victim = victim

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return None if recipient == self.victim else value


class NotFinite(QuadraticTask):
    """From step 2 on no gradient is finite."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        for request, row in zip(requests, out, strict=True):
            row.mul_(float("nan") if request.step >= 2 else 1.0)


class NotInTime(QuadraticTask):
    """No judge gets a number out of a batch on trial."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        for request, row in zip(requests, out, strict=True):
            row.mul_(float("nan") if request.purpose is Purpose.JUDGE else 1.0)


class WasShownNothing(Attacker):
    """Says so of every target."""

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        target = ctx.record.assignments.get(ctx.peer)
        return claims if target is None or ctx.last is None else (Claim(ctx.last.step, target, "undisclosed"),)


def judges_without_truth() -> str:
    tasks = {peer: NotInTime(D) for peer in range(5)}
    return damage(cohort({1: WasShownNothing()}, validation="tolerant", tasks=tasks), 12)


def gone_together() -> str:
    """Two of seven commit to something all the same, and are the only ones that do."""
    liars = {5: Attacker(), 6: Attacker()}
    tasks = {peer: QuadraticTask(D) for peer in liars}
    return damage(cohort(liars, peers=7, task=NotFinite(D), tasks=tasks), 6)


def nobody_left_to_work() -> str:
    return damage(cohort({1: Trades(2), 3: Trades(4)}, peers=7, validators=2), 10)
