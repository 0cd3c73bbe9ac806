"""Promises that were broken once, while honest peers are away (`test_promises.py`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.protocol.behaviour import Behaviour, Context, View
from btard.protocol.collusion import Collusion
from btard.protocol.commit import Incomplete
from btard.protocol.config import ProtocolConfig
from btard.protocol.messages import Claim
from btard.protocol.signed import Signed
from btard.task import QuadraticTask
from tests.protocol.promises import Attacker, Away, D, HugeAggregate, away_at, check_honest, dodging, own_numerics, play

# Honest peers that are away.


class Withholds(Attacker):
    """Sends its aggregate to everybody but the `victim`, once that one is not in the step and cannot complain."""

    def __init__(self, victim: int) -> None:
        self.victim = victim

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return None if recipient == self.victim and recipient not in ctx.record.members else value


class Late(Away):
    """An honest peer whose commitment comes too late in these steps; then it is there."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return None if phase == "commit" else message, {}

    def dispatch(self, ctx: Context, phase: str, packets: Any) -> Any:
        return packets


class SilentTo(Attacker):
    """Says nothing to the `victim` in one phase, once that one is not in the step."""

    def __init__(self, victim: int, phase: str) -> None:
        self.victim, self.phase = victim, phase

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return message, {self.victim: None} if phase == self.phase and self.victim not in ctx.record.members else {}


@pytest.mark.parametrize("how", ["withhold", "announce", "coin_commit/0", "coin_reveal/0", "report", "accuse/0"])
def test_who_missed_the_roll_call_ends_the_step_like_the_others(how: str, seed: int) -> None:
    """Else its late commitment and an attacker that pays nothing cost it three steps, and its place."""
    config = ProtocolConfig(peers=6, byzantine=1, max_absences=20, run_id=f"told {seed}")
    attacker, victim = 1 + seed % 5, 1 + (seed + 1) % 5
    attack = Withholds(victim) if how == "withhold" else SilentTo(victim, how)
    late = Late(away_at(*range(1, 9)).when)
    driver = LocalDriver(config, QuadraticTask(D), behaviours={attacker: attack, victim: late})
    results = play(driver, 10, torch.ones(D))
    check_honest(results, frozenset())
    assert all(not result.removed for result in results)


def test_who_lacks_an_aggregate_that_counts_does_not_go_on(seed: int) -> None:
    """Its uplink is down, and it cannot ask. With zero it would train another model, and be convicted of its work."""
    config = ProtocolConfig(peers=6, byzantine=1, max_absences=20, run_id=f"withheld {seed}")
    attacker, victim = 1 + seed % 5, 1 + (seed + 1) % 5
    behaviours = {attacker: Withholds(victim), victim: away_at(*range(1, 12))}
    with pytest.raises(Incomplete, match=f"and did not reach peer {victim}"):
        play(LocalDriver(config, QuadraticTask(D), behaviours=behaviours), 12, torch.ones(D))


@pytest.mark.parametrize(("peers", "byzantine"), [(4, 1), (8, 3), (16, 7)])
@pytest.mark.parametrize("size", [1e6, 3e38])
def test_an_honest_peer_that_is_away_saves_no_attacker(peers: int, byzantine: int, size: float, seed: int) -> None:
    members = frozenset(1 + (seed + 2 * i) % (peers - 1) for i in range(byzantine))
    away = next(peer for peer in range(peers) if peer not in members)
    strikes = range(2, 12)  # long enough for a lone attacker to own a part in one of them
    behaviours: dict[int, Behaviour] = {i: HugeAggregate(members, strikes, size) for i in members}
    config = ProtocolConfig(peers=peers, byzantine=byzantine, max_absences=20, run_id=f"undecided {seed}")
    driver = LocalDriver(config, QuadraticTask(D), behaviours={**behaviours, away: away_at(*strikes)})
    results: list[StepResult] = []
    params = torch.ones(D)
    while not any(result.removed for result in results) and len(results) < 12:
        results.append(driver.step(params))
        params = params - 0.1 * results[-1].gradient
    check_honest(results, members)
    assert members & {peer for result in results for entry in result.removed for peer in entry.peers}


class AccusesTheAbsent(Attacker):
    """Claims that the aggregates of the step before were wrong, if their owner is not there to show the evidence."""

    def __init__(self, victim: int) -> None:
        self.victim = victim

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        last = ctx.last
        if last is None or self.victim not in last.workers or self.victim in ctx.record.commits:
            return claims
        owned = (part for part in last.announced if last.owner(part) == self.victim)
        return tuple(sorted({*claims, *(Claim(last.step, self.victim, "wrong_aggregate", part) for part in owned)}))


def test_nobody_is_tried_for_what_it_cannot_show(seed: int) -> None:
    attacker, victim = 1 + seed % 4, 1 + (seed + 1) % 4
    config = ProtocolConfig(peers=5, byzantine=1, run_id=f"absent {seed}")
    behaviours = {attacker: AccusesTheAbsent(victim), victim: away_at(3, 7, 11)}
    driver = LocalDriver(config, QuadraticTask(D), behaviours=behaviours)
    check_honest(play(driver, 14, torch.ones(D)), frozenset({attacker}))


class FramesTheAbsent(Attacker):
    """Has colluders' wrong gradients, and once one is convicted accuses all owners of that step who are away now."""

    framed = 0

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        last, record = ctx.last, ctx.record
        if last is None or 0 not in record.trials or not set(record.expelled) & self.fellows:
            return super().accuse(ctx, claims)
        away = {part for part in last.announced if last.owner(part) in set(record.active) - set(record.here or ())}
        FramesTheAbsent.framed += len(away)
        return tuple(sorted(Claim(last.step, last.owner(part), "wrong_aggregate", part) for part in away))

    def disclose(self, ctx: Context, claim: Claim, packets: Sequence[Any]) -> Sequence[Any]:
        return ()


def test_an_honest_owner_that_is_away_is_not_framed(seed: int) -> None:
    FramesTheAbsent.framed = 0
    for run in range(seed * 8, seed * 8 + 8):
        members = frozenset({1, 2})
        attackers = {i: FramesTheAbsent() for i in members}
        for attacker in attackers.values():
            attacker.fellows = members
        config = ProtocolConfig(peers=6, byzantine=2, run_id=f"framed {run}", max_absences=9)
        honest = {i: away_at(*range(i, 14, 3)) for i in (3, 4, 5)}
        driver = LocalDriver(config, QuadraticTask(D), behaviours={**attackers, **honest})
        check_honest(play(driver, 12, torch.ones(D)), members)
    assert FramesTheAbsent.framed, "nobody was accused"


@pytest.mark.parametrize(("shows", "twists"), [(True, False), (False, False), (False, True)])
def test_an_owner_is_not_saved_by_being_away(shows: bool, twists: bool, seed: int) -> None:
    """If the other senders show the rows, these decide. If not: had it been honest, it would have accused the
    reporter that covered for it. A reporter that is wrong in another part proves as much."""
    fallen: Counter[str] = Counter()
    for run in range(seed * 4, seed * 4 + 4):
        collusion = Collusion(frozenset({1, 2, 3}), 8, run)
        behaviours = {i: dodging(collusion, shows=shows, twists=twists) for i in sorted(collusion.members)}
        config = ProtocolConfig(peers=8, byzantine=3, run_id=f"dodges {run}")
        driver = LocalDriver(config, QuadraticTask(D), behaviours=behaviours, collusion=collusion)
        results = play(driver, 25, torch.ones(D))
        check_honest(results, collusion.members)
        for result in results:
            for entry in result.removed:
                fallen[entry.kind] += entry.accused not in result.workers
    assert fallen["wrong_aggregate"] >= 3


@pytest.mark.parametrize("byzantine", [0, 1])
def test_a_target_that_is_away_is_not_convicted(byzantine: int, seed: int) -> None:
    """Mode tolerant, nobody hostile: it is away whenever it would have to show what it committed to."""
    config = ProtocolConfig(peers=5, byzantine=byzantine, run_id=f"target {seed}", validation="tolerant")

    def when(ctx: Context) -> bool:
        duties = ctx.record.assignments
        return ctx.step >= 1 and ctx.peer in duties.values() and ctx.peer not in duties

    driver = LocalDriver(config, QuadraticTask(D), behaviours={seed % 5: Away(when)}, tasks=own_numerics(5))
    check_honest(play(driver, 12, torch.ones(D)), frozenset())
