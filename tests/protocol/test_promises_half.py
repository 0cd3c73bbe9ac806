"""Promises that were broken once, by sets that are half Byzantine (`test_promises.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity
from btard.protocol.messages import Report
from btard.protocol.record import StepRecord
from btard.task import QuadraticTask
from tests.protocol.promises import Attacker, Away, D, away_at, check_honest, play, scalars_of

# Sets that are half Byzantine.


class CookedAggregate(Attacker):
    """Where `strong` says so: an aggregate of `size` in every entry, and reports that let the sum of V2 vanish.

    The colluders see the parts that each of them received (`records`: peer -> its record of the present step).
    """

    def __init__(
        self, fellows: frozenset[int], size: float, strong: Callable[[StepRecord], bool], records: dict[int, Any]
    ) -> None:
        self.fellows, self.size, self.strong, self.records = fellows, size, strong, records

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(value, self.size) if self.strong(ctx.record) else value

    def report(self, ctx: Context, report: Report) -> Report:
        record = ctx.record
        if not self.strong(record):
            return report
        leads = ctx.peer == min(peer for peer in self.fellows if peer in record.workers)
        products = list(report.products)
        for part in (part for part in record.announced if record.owner(part) in self.fellows):
            packets = self.records[record.owner(part)]().received[part]
            bodies = [packets[sender].body for sender in sorted(packets)]
            known = scalars_of(self.records[ctx.peer], record, bodies, part)
            honest = sum(
                products_[0]
                for sender, products_ in zip(sorted(packets), known, strict=True)
                if sender not in self.fellows
            )
            products[part] = (-honest if leads else 0.0,)
        return replace(report, products=tuple(products))


class _Records:
    """A colluder's own record of the step, looked up when it is asked for."""

    def __init__(self, driver: Callable[[], LocalDriver], peer: int) -> None:
        self._driver, self._peer = driver, peer

    def __call__(self) -> StepRecord:
        return self.peer.current

    @property
    def peer(self) -> Any:
        return self._driver().peers[self._peer]


def cooks(members: frozenset[int], size: float, from_step: int, made: list[LocalDriver]) -> dict[int, Behaviour]:
    """Attackers that strike where they own half of the parts or more."""

    def strong(record: StepRecord) -> bool:
        hostile = sum(owner in members for owner in record.owners)
        return record.step >= from_step and 2 * hostile >= sum(owner >= 0 for owner in record.owners)

    records = {member: _Records(lambda: made[0], member) for member in members}
    return {member: CookedAggregate(members, size, strong, records) for member in members}


@pytest.mark.parametrize(("peers", "byzantine"), [(5, 1), (16, 7)])
def test_a_slow_honest_peer_gives_attackers_no_majority_of_parts(peers: int, byzantine: int, seed: int) -> None:
    members = frozenset((seed + 1 + 2 * i) % peers for i in range(byzantine))
    slow = (min(members) - 1) % peers
    made: list[LocalDriver] = []
    config = ProtocolConfig(peers=peers, byzantine=byzantine, run_id=f"parts {seed}")
    behaviours = {**cooks(members, 1e6, 3, made), slow: away_at(3)}
    made.append(LocalDriver(config, QuadraticTask(D), behaviours=behaviours))
    check_honest(play(made[0], 5, torch.ones(D)), members)


def test_a_part_of_nobody_but_liars_does_not_count(seed: int) -> None:
    """All honest workers are away for a step, and the validators that are there make a quorum with the liar."""
    attacker, struck = seed % 5, []

    def strikes(ctx: Context) -> bool:
        """In the first step in which it is a worker and two others are validators."""
        duties = ctx.record.assignments
        if not struck and ctx.step >= 1 and len(duties) == 2 and attacker not in duties:
            struck.append(ctx.step)
        return ctx.step in struck

    class OwnAggregate(Attacker):
        def acts(self, ctx: Context) -> bool:
            return strikes(ctx)

        def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            return torch.full_like(value, 1e30)

        def report(self, ctx: Context, report: Report) -> Report:
            return replace(report, norms=(0.0,) * len(report.norms), products=((0.0,),) * len(report.products))

    config = ProtocolConfig(peers=5, byzantine=1, validators=2, run_id=f"alone {seed}")
    away = Away(lambda ctx: strikes(ctx) and ctx.peer not in ctx.record.assignments)
    behaviours: dict[int, Behaviour] = {peer: away for peer in range(5) if peer != attacker}
    driver = LocalDriver(config, QuadraticTask(D), behaviours={**behaviours, attacker: OwnAggregate()})
    check_honest(play(driver, 8, torch.ones(D)), frozenset({attacker}))
    assert struck


@pytest.mark.parametrize(("peers", "byzantine"), [(4, 1), (16, 7)])
def test_a_newcomer_on_probation_gives_attackers_no_majority(peers: int, byzantine: int, seed: int) -> None:
    members = frozenset((seed + 1 + 2 * i) % peers for i in range(byzantine))
    made: list[LocalDriver] = []
    config = ProtocolConfig(peers=peers, byzantine=byzantine, run_id=f"probation {seed}", probation=50)
    made.append(LocalDriver(config, QuadraticTask(D), behaviours=cooks(members, 1e30, 3, made)))
    params = torch.ones(D)
    results = play(made[0], 1, params)
    made[0].join(Identity.from_seed("honest newcomer", seed))
    results += play(made[0], 8, params - 0.1 * results[0].gradient)
    check_honest(results, members)
