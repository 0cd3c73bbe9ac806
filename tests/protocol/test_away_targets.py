"""A target that is away in the step in which it is checked: what it can gain by that, and what it can lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context, View
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity
from btard.protocol.messages import Claim, Report
from btard.protocol.record import StepRecord
from btard.protocol.signed import Packet, Signed
from btard.task import QuadraticTask
from tests.protocol.promises import Attacker, Away, D, OwnNumerics, check_honest, own_numerics, play, scalars_of


def is_checked(ctx: View) -> bool:
    return ctx.peer in ctx.assignments.values() and ctx.peer not in ctx.assignments


class AwayWhenChecked(Attacker):
    """Sends wrong gradients, and misses the roll call of every step in which it is a validator's target.

    It does not show what its fellows have sent it in phases that begin with one of `hidden`.
    """

    def __init__(self, fellows: frozenset[int], hidden: tuple[str, ...] = ()) -> None:
        self.fellows, self.hidden = fellows, hidden

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return gradient if is_checked(ctx) else -3 * gradient

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return None if is_checked(ctx) else message, {}

    def dispatch(
        self, ctx: Context, phase: str, packets: Mapping[int, Sequence[Packet]]
    ) -> Mapping[int, Sequence[Packet]]:
        if not phase.startswith(self.hidden or ("nothing",)):
            return packets
        kept = {to: [p for p in shown if p.sender not in self.fellows] for to, shown in packets.items()}
        return {to: shown for to, shown in kept.items() if shown}


HIDDEN = [
    ("exact", ()),
    ("tolerant", ()),
    ("tolerant", ("disclose",)),
    ("tolerant", ("disclose", "evidence", "pass")),
]


@pytest.mark.parametrize(("validation", "hidden"), HIDDEN)
def test_a_target_does_not_escape_by_being_away(validation: Any, hidden: tuple[str, ...], seed: int) -> None:
    members = frozenset(1 + (seed + 2 * i) % 7 for i in range(3))
    config = ProtocolConfig(peers=8, byzantine=3, run_id=f"absent {seed}", validation=validation)
    tasks = own_numerics(8) if validation == "tolerant" else None
    behaviours: dict[int, Behaviour] = {i: AwayWhenChecked(members, hidden) for i in members}
    driver = LocalDriver(config, QuadraticTask(D), behaviours=behaviours, tasks=tasks)
    check_honest(play(driver, 80, torch.ones(D)), members)
    assert not members & set(driver.honest[0].active), "they attack for ever"


class HidesItsAggregate(AwayWhenChecked):
    """Alone. Its gradient is right, its aggregate off by twice the part; its own report makes the sum of V2 vanish."""

    driver: LocalDriver

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return gradient

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return value + 2 * float(x.norm(dim=1).mean()) / len(value) ** 0.5

    def report(self, ctx: Context, report: Report) -> Report:
        record: StepRecord = ctx.record
        part = record.owners.index(ctx.peer)
        packets = record.received[part]
        peer = type("Records", (), {"peer": self.driver.peers[ctx.peer]})
        known = scalars_of(peer, record, [packets[sender].body for sender in sorted(packets)], part)
        others = sum(said[0] for sender, said in zip(sorted(packets), known, strict=True) if sender != ctx.peer)
        products = list(report.products)
        products[part] = (-others,)
        return replace(report, products=tuple(products))


@pytest.mark.parametrize("present", [True, False])
def test_nobody_hides_a_wrong_aggregate_behind_a_report_that_it_takes_away_with_it(present: bool, seed: int) -> None:
    """Its own part is the one that nobody else holds."""
    attacker = 1 + seed % 6
    config = ProtocolConfig(peers=7, byzantine=1, run_id=f"own part {seed}", validation="tolerant", gradient_tol=0.02)
    behaviour = HidesItsAggregate(frozenset({attacker}))
    if present:
        behaviour.say = lambda ctx, phase, payload, message, sign: (message, {})  # type: ignore[method-assign]
    driver = LocalDriver(config, QuadraticTask(D), behaviours={attacker: behaviour}, tasks=own_numerics(7))
    behaviour.driver = driver
    results = play(driver, 60, torch.ones(D))
    check_honest(results, frozenset({attacker}))
    assert attacker not in driver.honest[0].active
    assert next(entry.kind for result in results for entry in result.removed) == "wrong_gradient"


class Slanders(Attacker):
    """As a validator accuses whoever is away; as an owner it shows `junk` of what it was sent, or nothing."""

    def __init__(self, fellows: frozenset[int], kind: str, *, junk: bool) -> None:
        self.fellows, self.kind, self.junk = fellows, kind, junk

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        target = ctx.record.assignments.get(ctx.peer)
        if target is None or ctx.last is None or target not in ctx.last.workers or ctx.record.attends(target):
            return claims
        return (Claim(ctx.step - 1, target, self.kind),) if ctx.record.phase == "report" else claims

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        return "guilty"

    def dispatch(
        self, ctx: Context, phase: str, packets: Mapping[int, Sequence[Packet]]
    ) -> Mapping[int, Sequence[Packet]]:
        if not phase.startswith(("disclose", "evidence", "pass")):
            return packets
        return {to: [replace(p, body=p.body + 1) for p in shown] for to, shown in packets.items() if self.junk}


@pytest.mark.parametrize("kind", ["wrong_gradient", "undisclosed"])
@pytest.mark.parametrize("junk", [False, True])
def test_an_honest_target_that_is_away_stays_whatever_owners_and_validators_do(
    kind: str, junk: bool, seed: int
) -> None:
    members = frozenset(1 + (seed + 2 * i) % 7 for i in range(3))
    config = ProtocolConfig(
        peers=8,
        byzantine=3,
        run_id=f"slander {seed}",
        validation="tolerant",
        gradient_tol=1e-5,
        cosine_tol=1e-10,
        max_absences=10**6,
    )
    behaviours: dict[int, Behaviour] = {i: Slanders(members, kind, junk=junk) for i in members}
    behaviours |= {i: Away(lambda ctx: ctx.step >= 1 and is_checked(ctx)) for i in range(8) if i not in members}
    driver = LocalDriver(config, QuadraticTask(D), behaviours=behaviours, tasks=own_numerics(8))
    for result in play(driver, 30, torch.ones(D)):
        for entry in result.removed:
            assert set(entry.peers) <= members, entry


def test_who_convicts_a_target_that_is_away_does_so_after_a_restart_too(seed: int) -> None:
    """Interrupted after every step: all that is needed is in the checkpoint."""
    members = frozenset({1 + seed % 6})
    config = ProtocolConfig(peers=7, byzantine=1, run_id=f"restart {seed}", validation="tolerant")

    def cohort() -> LocalDriver:
        behaviours: dict[int, Behaviour] = {i: AwayWhenChecked(members) for i in members}
        return LocalDriver(config, QuadraticTask(D), behaviours=behaviours, tasks=own_numerics(7))

    whole, parted, params = cohort(), cohort(), torch.ones(D)
    removed = []
    for step in range(60):
        expected, got = whole.step(params), parted.step(params)
        assert expected.removed == got.removed and torch.equal(expected.gradient, got.gradient)
        removed += got.removed
        state, tensors = parted.state()
        parted = cohort()
        parted.restore(state, {name: x.clone() for name, x in tensors.items()}, life=b"%d" % step)
        if removed:
            break
    assert [(entry.kind, set(entry.peers)) for entry in removed] == [("wrong_gradient", members)]


@pytest.mark.parametrize("byzantine", [0, 1])
def test_an_honest_newcomer_that_is_away_when_it_is_checked_begins_its_probation_again(byzantine: int) -> None:
    """Mode tolerant, nobody hostile: nobody else holds anything of a newcomer's work."""
    missed: list[int] = []

    def when(ctx: View) -> bool:
        if not missed and is_checked(ctx):
            missed.append(ctx.step)
        return ctx.step in missed

    config = ProtocolConfig(peers=6, byzantine=byzantine, run_id="away", probation=4, validation="tolerant")
    tasks = {peer: OwnNumerics(D, peer) for peer in range(7)}
    driver, params, steps = LocalDriver(config, QuadraticTask(D), tasks=tasks), torch.ones(D), []
    for step in range(16):
        if step == 1:
            driver.join(Identity.from_seed("newcomer"), Away(when))
        result = driver.step(params)
        params = params - 0.1 * result.gradient
        steps += [(entry.kind, result.step) for entry in result.removed]
    assert len(missed) == 1 and [kind for kind, _ in steps] == ["join", "member"]
    assert steps[1][1] >= missed[0] + 4, "its probation has to begin again"
