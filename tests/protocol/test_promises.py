"""Promises that were broken once: each attack here got honest peers banned, or its own vectors applied, or never ended.

`--seeds N` runs every one of them with N seeds; who attacks and who is away follows from the seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute, Exchange, Purpose
from btard.protocol.messages import Claim
from btard.protocol.signed import Signed
from btard.task import QuadraticTask
from tests.protocol.promises import Attacker, D, check_honest, play

# The coin.


class AbortsOnce(Attacker):
    """Sacrificed: it does not reveal, so that the coin is tossed again."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return (None if phase == "coin_reveal/0" else message), {}


class LatecomerToTheCoin(Attacker):
    """Is not there until the second toss, and then withholds its reveal, up to `patience` times."""

    def __init__(self, patience: int = 20) -> None:
        self.patience, self.withheld = patience, 0

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        name, _, attempt = phase.partition("/")
        if name == "commit" or attempt == "0":
            return None, {}
        if name == "coin_reveal" and self.withheld < self.patience:
            self.withheld += 1
            return None, {}
        return message, {}


def test_who_was_not_there_cannot_choose_the_coin(seed: int) -> None:
    aborts, late = 1 + seed % 5, 1 + (seed + 1) % 5
    tosses: Counter[int] = Counter()

    class Counting(Behaviour):
        def acts(self, ctx: Context) -> bool:
            return True

        def reveal(self, ctx: Context, reveal: Any) -> Any:
            tosses[ctx.step] += 1
            return reveal

    config = ProtocolConfig(peers=6, byzantine=2, run_id=f"coin {seed}")
    behaviours = {aborts: AbortsOnce(), late: LatecomerToTheCoin(), 0: Counting()}
    driver = LocalDriver(config, QuadraticTask(D), behaviours=behaviours)
    check_honest(play(driver, 4, torch.ones(D)), frozenset({aborts, late}))
    assert 1 <= max(tosses.values()) <= 1 + config.byzantine


# Where bits can decide.


class PartlyFrozen(QuadraticTask):
    """The gradient of the second half of the parameters is exactly zero, as of a frozen layer."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        out[:, self.d // 2 :] = 0


class Denormals(Attacker):
    """Three quanta of float32 where the others have zeros, and then accusations of the owners of these parts."""

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return torch.where(gradient == 0, torch.full_like(gradient, 3 * 2.0**-149), gradient)

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        record = ctx.record
        tiny = {
            part
            for part, value in record.aggregates.items()
            if part in record.announced and record.owner(part) != ctx.peer and bool((value.abs() < 1e-38).all())
        }
        false = {Claim(ctx.step, record.owner(part), "wrong_aggregate", part) for part in tiny}
        return tuple(sorted({*claims, *false}))


@pytest.mark.parametrize(("peers", "d"), [(5, 32), (16, 3200)])
@pytest.mark.parametrize("validation", ["exact", "tolerant"])
def test_denormals_convict_no_honest_owner(peers: int, d: int, validation: Any, seed: int) -> None:
    attacker = 1 + seed % (peers - 1)
    config = ProtocolConfig(peers=peers, byzantine=1, run_id=f"denormal {seed}", validation=validation)
    driver = LocalDriver(config, PartlyFrozen(d), behaviours={attacker: Denormals()})
    check_honest(play(driver, 5, torch.ones(d)), frozenset({attacker}))


# What one peer can cost the others.


class SendsTooMuch(Attacker):
    """Its parts have `times` the size, and its signature."""

    def __init__(self, times: float) -> None:
        self.times = times

    def active(self, step: int) -> bool:
        return step >= 2

    def part(self, ctx: Context, part: int, body: torch.Tensor) -> torch.Tensor | bytes:
        return body if ctx.record.owner(part) == ctx.peer else bytes(round(4 * self.times * len(body)))


@pytest.mark.parametrize("times", [1.5, 1.99, 2, 2.01, 3, 4, 20])
def test_what_is_read_can_be_shown(times: float, seed: int) -> None:
    """Between the limit of a packet and that of evidence honest accusers would have nothing to show."""
    attacker, d = 1 + seed % 6, 7000
    config = ProtocolConfig(peers=7, byzantine=1, run_id=f"too much {seed}")
    driver = LocalDriver(config, QuadraticTask(d), behaviours={attacker: SendsTooMuch(times)})
    results = play(driver, 5, torch.ones(d))
    check_honest(results, frozenset({attacker}))
    assert [peer for result in results for entry in result.removed for peer in entry.peers] == [attacker]


class ClaimsAllItMay(Attacker):
    """Every claim about every peer that has a role for it, all at once."""

    def active(self, step: int) -> bool:
        return step == 2

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        record, last, me = ctx.record, ctx.last, ctx.peer
        if last is None or not record.phase.startswith(("report", "coin", "accuse/0")):
            return claims
        raised = {Claim(last.step, peer, "wrong_gradient") for peer in last.workers if peer != me}
        for about in (record, last):
            for part in about.announced:
                if about.owner(part) != me:
                    raised.add(Claim(about.step, about.owner(part), "wrong_aggregate", part))
        mine = [part for part in record.announced if record.owner(part) == me]
        others = [peer for peer in record.workers if peer != me]
        raised |= {
            Claim(record.step, peer, kind, part)
            for peer in others
            for part in mine
            for kind in ("misreport", "bad_part")
        }
        raised |= {
            Claim(record.step, record.owner(j), "bad_aggregate", j) for j in record.announced if record.owner(j) != me
        }
        return tuple(sorted(raised))


def test_one_peer_cannot_make_the_others_work_without_bound(seed: int) -> None:
    peers, d = 16, 1600
    attacker = 1 + seed % 15
    config = ProtocolConfig(peers=peers, byzantine=7, run_id=f"flood {seed}")
    driver = LocalDriver(config, QuadraticTask(d), behaviours={attacker: ClaimsAllItMay()})
    limits: list[int] = []
    judged: Counter[int] = Counter()
    for peer in driver.peers.values():
        watch(peer, limits, judged)
    check_honest(play(driver, 3, torch.ones(d)), frozenset({attacker}))
    bytes_of_gradient = 4 * d
    assert max(limits, default=0) <= 8 * bytes_of_gradient + 2**16
    assert max(judged.values(), default=0) <= config.validators


def watch(peer: Any, limits: list[int], judged: Counter[int]) -> None:
    """Note the limits of evidence and the gradients that the peer asks for as a judge."""
    steps = peer.step

    def step() -> Any:
        running, answer = steps(), None
        while True:
            try:
                effect = running.send(answer)
            except StopIteration as stop:
                return stop.value
            if isinstance(effect, Exchange) and effect.phase.startswith(("evidence", "pass")):
                limits.append(effect.limit)
            judged[peer.id] += isinstance(effect, Compute) and effect.purpose is Purpose.JUDGE
            answer = yield effect

    peer.step = step


def test_alarms_of_honest_swarms_are_rare() -> None:
    """V3 by its automatic distance, where the parts of the model differ by orders of magnitude."""

    class Layered(QuadraticTask):
        def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
            super().gradients(params, requests, out)
            out.mul_(torch.logspace(-6, 0, self.d))

    config = ProtocolConfig(peers=8, byzantine=3, run_id="layers")
    driver = LocalDriver(config, Layered(D))
    trials: list[int] = []
    judged: Counter[int] = Counter()
    for peer in driver.peers.values():
        watch(peer, trials, judged)
    play(driver, 50, torch.ones(D))
    assert not trials
