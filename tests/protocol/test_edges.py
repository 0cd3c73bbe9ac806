"""Both sides of the edges of the table "Sets that decide" in docs/protocol.md: the promise, and what happens beyond.

V3's reporters are in `test_verify.py`, the parts behind `tau: auto` in `test_radius.py`, those that vouch for a state
in `test_join_state.py`, those that check a newcomer in `test_join_byzantine.py`, an audit's signers in
`tests/audit/test_forged.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from btard.audit import audit
from btard.drivers.links import Links
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.commit import NoGradient, NoQuorum
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.identity import Identity
from btard.protocol.messages import Report
from btard.protocol.signed import Signed
from btard.task import QuadraticTask
from tests.audit.runs import record
from tests.protocol.promises import Attacker, Away, D, HugeAggregate

STEP = 1
"""At which it happens."""
HONEST_VALIDATORS = "validators 5"
"""The name of a run of 8 peers in which the validators of steps 1 to 4 are among 0 ... 4."""


class NotFinite(QuadraticTask):
    """At step `STEP` (`after`: and later) the peers `without` find no finite gradient: they are there, and work not."""

    def __init__(self, without: Sequence[int] = (), *, after: bool = False) -> None:
        super().__init__(D)
        self.without, self.after = without, after

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **settings: Any) -> None:
        super().gradients(params, requests, out)
        for request, row in zip(requests, out, strict=True):
            if (request.step == STEP or (self.after and request.step > STEP)) and request.peer in self.without:
                row.fill_(torch.nan)


class Mute(Attacker):
    """Is not heard at all."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return None, {}


def at_the_step(
    peers: int, liars: dict[int, Behaviour], away: int = 0, *, without: int = 0, **settings: Any
) -> tuple[LocalDriver, StepResult]:
    """Step `STEP` with `away` honest workers away, and `without` of them without a gradient; its validator is honest.

    `liars` have the last numbers. The run's name is the first with which the coin draws such a validator.
    """
    byzantine = settings.pop("byzantine", len(liars))
    for number in range(100):
        config = ProtocolConfig(peers=peers, byzantine=byzantine, run_id=f"edge {number}", **settings)
        task, behaviours = NotFinite(), dict(liars)
        driver = LocalDriver(config, task, behaviours=behaviours)
        for _ in range(STEP):
            driver.step(torch.ones(D))
        if liars.keys() & driver.peers[0].assignments.keys():
            continue
        workers = [peer for peer in range(peers) if peer not in (*liars, *driver.peers[0].assignments)]
        for peer in workers[:away]:
            driver.peers[peer].behaviour = Away(lambda ctx: ctx.step == STEP)
        task.without = workers[away : away + without]
        return driver, driver.step(torch.ones(D))
    raise AssertionError("no honest validator")


def parts_of(driver: LocalDriver, result: StepResult) -> dict[int, torch.Tensor]:
    """Owner -> its part of the step's gradient."""
    record = driver.honest[-1].last
    assert record is not None
    return {owner: record.cut.view(result.gradient, part) for part, owner in enumerate(record.owners) if owner >= 0}


@pytest.mark.parametrize("away", [0, 1])
def test_a_step_takes_more_than_half_of_the_active_peers(away: int) -> None:
    liars: dict[int, Behaviour] = {peer: Mute() for peer in (5, 6, 7)}
    if away:
        with pytest.raises(NoQuorum, match="heard 4 of 8"):
            at_the_step(8, liars, away)
    else:
        driver, result = at_the_step(8, liars, away)
        assert len(result.workers) == 4 and all(part.abs().min() > 0 for part in parts_of(driver, result).values())


@pytest.mark.parametrize("without", [4, 5])
def test_a_step_takes_one_worker(without: int) -> None:
    if without == 5:
        with pytest.raises(NoGradient):
            at_the_step(6, {}, without=without)
    else:
        driver, result = at_the_step(6, {}, without=without)
        [part] = parts_of(driver, result).values()
        assert len(result.workers) == 1 and part.abs().min() > 0


@pytest.mark.parametrize("without", [2, 3])
def test_a_part_takes_more_rows_than_there_may_be_liars(without: int) -> None:
    """More than b_t = 2 of 5, so that an honest worker reports on it."""
    driver, result = at_the_step(6, {}, without=without, byzantine=2)
    assert len(result.workers) == 5 - without
    counts = [bool(part.abs().min() > 0) for part in parts_of(driver, result).values()]
    assert counts == [without == 2] * (5 - without)


class SharedTrouble(Links):
    """From step `STEP` on all honest peers are late with their gradients."""

    def late(self, step: int, peer: int) -> bool:
        return step >= STEP and peer not in (5, 6, 7)


@pytest.mark.parametrize("how", ["late", "not finite"])
def test_honest_peers_that_have_no_gradient_together_are_not_gone(how: str) -> None:
    """Nobody goes where only as many work as may be liars, and the run stops: it is not left to these."""
    liars: dict[int, Behaviour] = {peer: Attacker() for peer in (5, 6, 7)}
    config = ProtocolConfig(peers=8, byzantine=3, probation=20, run_id="together")
    task, tasks = NotFinite(range(9), after=True), {peer: QuadraticTask(D) for peer in liars}
    options: dict[str, Any] = {"links": SharedTrouble()} if how == "late" else {"tasks": tasks}
    driver = LocalDriver(config, task if how == "not finite" else QuadraticTask(D), behaviours=liars, **options)
    driver.join(Identity.from_seed("newcomer"))
    results: list[StepResult] = []

    def go_on() -> None:
        while len(results) < 20:
            results.append(driver.step(torch.ones(D)))

    with pytest.raises(NoGradient, match="here and have had no gradient for long"):
        go_on()
    assert len(results) >= config.max_absences and set(results[-1].workers) <= liars.keys()
    assert [entry.kind for result in results for entry in result.removed] == ["join"]


class SaysItHasNone(Attacker):
    """Is there, and commits to nothing."""

    def commit(self, ctx: Context, digests: tuple[bytes, ...]) -> tuple[bytes, ...]:
        return ()


class OneLate(Links):
    """In step 3 this peer is late with its gradient."""

    peer = 0

    def late(self, step: int, peer: int) -> bool:
        return step == 3 and peer == self.peer


def test_liars_without_a_gradient_are_gone_once_more_work_than_there_may_be_liars(tmp_path: Path) -> None:
    """In step 3 an honest worker is late, too: that saves them for this step, and stops nothing. An audit agrees."""
    liars: dict[int, Behaviour] = {peer: SaysItHasNone() for peer in (5, 6, 7)}
    links, members = OneLate(), []

    def between(driver: LocalDriver, step: int) -> None:
        members.append(len(driver.peers[0].active))
        links.peer = min(set(range(5)) - driver.peers[0].assignments.keys())

    driver = record(tmp_path, liars, between=between, links=links, steps=7, run_id=HONEST_VALIDATORS)
    assert members == [8, 8, 8, 8, 8, 5, 5]
    assert {entry.kind for entry in driver.honest[0].ledger.entries} == {"gone"}
    assert len(audit(tmp_path).findings) == 3


class Far(Attacker):
    """Its gradient is far from everybody's."""

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return torch.full_like(gradient, 1e6)


@pytest.mark.parametrize("away", [1, 2])
def test_honest_rows_are_more_than_half_or_far_parts_are_skipped(away: int) -> None:
    """b < (n - m - a)/2 with n = 7, m = 1, b = 2: a = 1 honest worker may be away."""
    liars: dict[int, Behaviour] = {5: Far(), 6: Far()}
    driver, result = at_the_step(7, liars, away, tau=1.0)
    parts = parts_of(driver, result)
    assert len(parts) == 6 - away and result.removed == ()
    record = driver.honest[-1].last
    assert record is not None
    assert bool(record.skipped) == (away == 2)
    assert float(result.gradient.abs().max()) < 30.0
    for part in parts.values():
        assert bool(part.abs().max() > 0) == (away == 1)


@pytest.mark.parametrize("away", [1, 2])
def test_honest_voters_are_more_than_half_or_nothing_is_decided(away: int) -> None:
    """b < (n - a)/2 with n = 6, b = 2: a = 1 may be away. In both cases the aggregate counts for nothing."""
    fellows = frozenset({4, 5})
    liars: dict[int, Behaviour] = {peer: HugeAggregate(fellows, (STEP,), 1e6) for peer in fellows}
    driver, result = at_the_step(6, liars, away, validators=1)
    kinds = {peer: entry.kind for entry in result.removed for peer in entry.peers}
    assert kinds == dict.fromkeys(fellows, "wrong_aggregate" if away == 1 else "undelivered")
    for owner, part in parts_of(driver, result).items():
        assert bool(part.abs().max() > 0) == (owner not in fellows)
    assert float(result.gradient.abs().max()) < 30.0


class LiesAndIsSilent(Attacker):
    """Reports a wrong norm, and says nothing in the vote on it."""

    def report(self, ctx: Context, report: Report) -> Report:
        return replace(report, norms=tuple(2 * norm for norm in report.norms)) if ctx.step == STEP else report

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return (None if phase.startswith("vote") else message), {}


class SilentVoter(Attacker):
    """An honest peer that is not heard any more from the vote on."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return (None if phase.startswith("vote") else message), {}


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
def test_who_does_not_vote_is_no_voter(validation: str) -> None:
    """b < (n - a)/2 with n = 4, b = 1: a = 1 honest peer may fall silent, and costs the honest accusers nothing."""
    liars: dict[int, Behaviour] = {2: SilentVoter(), 3: LiesAndIsSilent()}
    driver = LocalDriver(
        ProtocolConfig(peers=4, byzantine=1, validators=0, run_id="silent voter", validation=validation),
        QuadraticTask(D),
        behaviours=liars,
    )
    params = torch.ones(D)
    for _ in range(3):
        params = params - 0.1 * driver.step(params).gradient
    removed = {entry.kind: entry.peers for entry in driver.peers[0].ledger.entries}
    assert sorted(peer for entry in driver.peers[0].ledger.entries for peer in entry.peers) == [2, 3], removed
    assert driver.peers[0].active == (0, 1)


class Withholds(Attacker):
    """Gives its aggregate to all but the first `lacking` others."""

    def __init__(self, lacking: int) -> None:
        self.lacking = lacking

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return None if recipient < self.lacking else value


@pytest.mark.parametrize("lacking", [2, 3, 4])
def test_a_part_counts_if_half_do_not_lack_it_and_its_owner_goes_alone_if_more_do(lacking: int) -> None:
    """Of six members. Each that lacks the aggregate accuses the owner; who is accused by more than half goes alone."""
    driver, result = at_the_step(6, {5: Withholds(lacking)})
    kept = bool(parts_of(driver, result)[5].abs().max() > 0)
    assert kept == (lacking == 2)
    [entry] = result.removed
    assert (entry.kind, len(entry.peers)) == (("silent", 1) if lacking == 4 else ("withheld_aggregate", 2))
    assert 5 in entry.peers
