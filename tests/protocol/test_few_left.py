"""Few peers that are left, and newcomers among them: what b_t, checks and draws must not make of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from btard.attacks import make_attack
from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity
from btard.protocol.ledger import GRADUATED, Entry, still_byzantine
from btard.protocol.messages import Claim, CoinReveal, TimedCommit
from btard.protocol.signed import Relayed, Signed
from btard.protocol.split import Split
from btard.task import QuadraticTask
from tests.protocol.promises import Attacker, Away, D, own_numerics

START = torch.full((D,), 5.0)


class Trades(Attacker):
    """Says that it lacks the aggregate of an honest owner, and accuses it: both go."""

    def __init__(self, at: int, victim: int) -> None:
        self.at, self.victim = at, victim

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        parts = [part for part in ctx.record.announced if ctx.record.owner(part) == self.victim]
        if phase == "coin_reveal/0" and ctx.step >= self.at and parts:
            return sign(CoinReveal.lacking(parts)), {}
        return message, {}

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        lacking = ctx.record.missing.get(ctx.peer, ())
        return tuple(Claim(ctx.step, self.victim, "withheld_aggregate", part) for part in lacking)


class Withholds(Attacker):
    """Does not reveal its share of the coin, and falls out: nobody knows whether it was honest."""

    def reveal(self, ctx: Context, reveal: CoinReveal) -> CoinReveal | None:
        return None


class Dodges(Attacker):
    """A newcomer that commits to zeros, and is away whenever it is checked."""

    def active(self, step: int) -> bool:
        return True

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(gradient)

    def commit(self, ctx: Context, digests: tuple[bytes, ...]) -> tuple[bytes, ...] | None:
        return None if ctx.peer in ctx.assignments.values() and ctx.peer in ctx.record.standings else digests


def cohort(
    behaviours: Mapping[int, Behaviour],
    *,
    collusion: Collusion | None = None,
    tolerant: bool = False,
    **settings: Any,
) -> LocalDriver:
    if tolerant:
        settings |= {"validation": "tolerant", "gradient_tol": 1e-3}
    config = ProtocolConfig(**{"run_id": "few left", **settings})
    tasks = own_numerics(config.peers) if tolerant else None
    return LocalDriver(config, QuadraticTask(D), behaviours=behaviours, collusion=collusion, tasks=tasks)


def train(driver: LocalDriver, steps: int) -> list[Any]:
    params, results = START, []
    for _ in range(steps):
        results.append(driver.step(params))
        params = params - 0.1 * results[-1].gradient
    return results


def gone(*peers: int, kind: str = "silent") -> list[Entry]:
    return [Entry(1, kind, "public", peer, accusers=(), peers=(peer,), about_step=1) for peer in peers]


def test_the_byzantine_are_a_minority_of_those_that_are_left() -> None:
    for probation in (None, 3):
        config = ProtocolConfig(peers=8, byzantine=3, probation=probation)
        left = [still_byzantine(config, gone(*range(count))) for count in range(8)]
        assert left == [3, 3, 2, 2, 1, 1, 0, 0], "who is silent may have been honest"
    joined = Entry(2, GRADUATED, "public", 8, accusers=(), peers=(), about_step=2)
    assert still_byzantine(config, [*gone(0, 1), joined]) == 3


def test_trades_do_not_end_training_nor_keep_newcomers_out() -> None:
    """Four liars of seven trade: among five honest peers and three liars b_t = 7 would skip each part."""
    traders = {15 - i: Trades(2, i) for i in range(4)}
    driver = cohort({**traders, **{i: Attacker() for i in (4, 5, 6)}}, peers=16, byzantine=7, probation=2)
    train(driver, 8)
    assert len(driver.honest[0].active) == 8
    newcomer = driver.join(Identity.from_seed("newcomer"))
    results = train(driver, 20)
    assert all(result.gradient.norm() > 0 for result in results)
    assert newcomer.peer in driver.honest[0].active


class Hides(Attacker):
    """Does not show its commitment to newcomers, nor what it has heard."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return message, dict.fromkeys(ctx.record.probation, None) if phase == "commit" else {}

    def relay(
        self, ctx: Context, phase: str, round: int, outgoing: Mapping[int, Sequence[Relayed]]
    ) -> Mapping[int, Sequence[Relayed]]:
        return {to: items for to, items in outgoing.items() if to not in ctx.record.probation}


def test_a_newcomer_among_few_is_told_what_the_members_heard() -> None:
    behaviours = {7: Trades(2, 0), 6: Trades(2, 1), 5: Hides()}
    driver = cohort(behaviours, peers=8, byzantine=3, probation=3)
    train(driver, 5)
    newcomer = driver.join(Identity.from_seed("newcomer"))
    train(driver, 8)
    assert newcomer.peer in driver.honest[0].active


class Long(Attacker):
    """Says that each step took weeks."""

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return (sign(replace(payload, elapsed=2**31 - 1)) if isinstance(payload, TimedCommit) else message), {}


def test_one_liar_among_few_does_not_say_how_long_steps_took() -> None:
    behaviours: dict[int, Behaviour] = {7: Withholds(), 6: Withholds(), 5: Long()}
    behaviours |= {i: Away(lambda ctx: ctx.step >= 3) for i in (0, 1)}
    driver = cohort(behaviours, peers=8, byzantine=3, validators=0, max_away=3600.0)
    params = START
    for _ in range(9):
        for peer in driver.peers.values():
            peer.elapsed = 1000
        params = params - 0.1 * driver.step(params).gradient
    assert {0, 1} <= set(driver.honest[0].active)


@pytest.mark.parametrize("count", [0, 3])
def test_a_newcomer_that_is_away_when_it_is_checked_is_not_cleared(count: int) -> None:
    """Where members fell silent, and where all are there."""
    driver = cohort({7 - i: Withholds() for i in range(count)}, tolerant=True, peers=8, byzantine=3, probation=3)
    train(driver, 2)
    junk = driver.join(Identity.from_seed("junk"), Dodges())
    results = train(driver, 40)
    kinds = [entry.kind for result in results for entry in result.removed if entry.accused == junk.peer]
    assert kinds == ["join", "gone"]


def test_junk_that_dodges_its_checks_keeps_no_place_for_ever() -> None:
    driver = cohort({}, tolerant=True, peers=6, byzantine=1, probation=3, max_newcomers=6)
    driver.step(START)
    for number in range(6):
        driver.join(Identity.from_seed("junk", number), Dodges())
    train(driver, 2)
    newcomer = driver.join(Identity.from_seed("honest"))
    train(driver, 30)
    assert newcomer.peer is not None


class Clears(Attacker):
    """Says that it could not check a newcomer, but for one that is a member if it clears it: then as it likes."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        target = ctx.assignments.get(ctx.peer, -1)
        if target not in ctx.record.standings or ctx.record.phase.endswith("/1"):
            return claims
        standing = ctx.record.standings[target]
        decides = standing.served >= 1 and len(standing.cleared - {ctx.peer}) >= ctx.record.byzantine
        return claims if decides and not self.refuses else (Claim(ctx.step - 1, target, "unchecked"),)


def test_who_clears_a_newcomer_has_no_choice_between_two_draws() -> None:
    """Up to the step in which a liar lets it be a member in one run and not in the other, both are the same."""
    forks = 0
    for seed in range(12):
        drivers = [
            cohort(dict.fromkeys((1, 4, 7), Clears(refuses)), peers=9, byzantine=4, probation=2, run_id=f"fork {seed}")
            for refuses in (False, True)
        ]
        for driver in drivers:
            driver.step(START)
            driver.join(Identity.from_seed("newcomer", seed))
        came = kept = False
        while not came and drivers[0].honest[0].t < 25:
            came, kept = (any(e.kind == GRADUATED for e in driver.step(START).removed) for driver in drivers)
            pairs, others = (driver.honest[0].assignments for driver in drivers)
            if kept != came:  # a member of one of them is checked by nobody
                pairs, others = ({v: i for v, i in drawn.items() if i < 9} for drawn in (pairs, others))
            assert pairs == others
        forks += came and not kept
    assert forks >= 3


def test_a_convicted_report_uncovers_its_owner_also_where_another_part_is_wrong() -> None:
    """Colluders hide wrong aggregates behind false reports, and change one entry of their own part."""
    members = frozenset({1, 3, 5, 7})
    fell: dict[bool, dict[int, int]] = {}
    for twisted in (False, True):
        collusion = Collusion(members, 12)
        liars = {i: make_attack("colluding_aggregate", collusion, start=1, scale=2.0) for i in members}

        def twist(ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
            planned = [peer for peer in ctx.active if peer not in ctx.assignments]
            first, _ = Split(len(gradient), len(planned)).bounds(planned.index(ctx.peer))
            changed = gradient.clone()
            changed[first] += 1e-3
            return changed

        for liar in liars.values() if twisted else ():
            liar.gradient = twist  # type: ignore[method-assign]
        driver = cohort(liars, collusion=collusion, peers=12, byzantine=4)
        results = train(driver, 40)
        fell[twisted] = {p: r.step for r in results for entry in r.removed for p in entry.peers}
    assert set(fell[True]) == set(fell[False]) == members
    assert max(fell[True].values()) <= max(fell[False].values())
