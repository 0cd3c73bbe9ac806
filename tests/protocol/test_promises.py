"""Promises that were broken once: each attack here got honest peers banned, or its own vectors applied, or never ended.

`--seeds N` runs every one of them with N seeds; who attacks and who is away follows from the seed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from msgspec.structs import replace

from btard.attacks import make_attack
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.protocol.behaviour import Behaviour, Context, View
from btard.protocol.collusion import Collusion
from btard.protocol.commit import Incomplete
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute, Exchange, Purpose
from btard.protocol.identity import Identity
from btard.protocol.messages import Claim, CoinCommit, Packet, Relayed, Report, Signed, relay_digest
from btard.protocol.peer import Peer
from btard.protocol.record import Split, StepRecord
from btard.protocol.report import part_scalars
from btard.task import QuadraticTask, Task

D = 60


class Attacker(Behaviour):
    """Byzantine from step 1 on; it turns in no fellow."""

    byzantine = True
    fellows: frozenset[int] = frozenset()

    def active(self, step: int) -> bool:
        return step >= 1

    @property
    def resting(self) -> Behaviour:
        rested = Behaviour()
        rested.byzantine = True
        return rested

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return tuple(claim for claim in claims if claim.accused not in self.fellows)


class Away(Behaviour):
    """An honest peer that nobody hears in the steps in which `when` holds: its uplink is down."""

    def __init__(self, when: Callable[[Context], bool]) -> None:
        self.when = when

    def acts(self, ctx: Context) -> bool:
        return self.when(ctx)

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return None, {}

    def dispatch(self, ctx: Context, phase: str, packets: Any) -> Any:
        return {}


def away_at(*steps: int) -> Away:
    """Away in these steps, but for those in which it is a validator."""
    return Away(lambda ctx: ctx.step in steps and ctx.peer not in ctx.record.assignments)


def play(driver: LocalDriver, steps: int, params: torch.Tensor) -> list[StepResult]:
    """Train for `steps` steps from `params` [d]; raises if the honest peers disagree."""
    results = []
    for _ in range(steps):
        results.append(driver.step(params))
        params = params - 0.1 * results[-1].gradient
    return results


def check_honest(results: Sequence[StepResult], members: frozenset[int], *, largest: float = 30.0) -> None:
    """No honest peer was removed, and nothing far from the honest gradients was applied."""
    for result in results:
        for entry in result.removed:
            assert set(entry.peers) <= members, f"honest peers removed: {entry}"
        assert float(result.gradient.abs().max()) <= largest, f"step {result.step}: {result.gradient.abs().max():g}"


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


class HugeAggregate(Attacker):
    """Announces an aggregate of `size` in every entry and lets its fellows vote for it."""

    def __init__(self, fellows: frozenset[int], steps: Sequence[int], size: float) -> None:
        self.fellows, self.steps, self.size = fellows, steps, size

    def active(self, step: int) -> bool:
        return step in self.steps

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(value, self.size)

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return ()

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        return "excused"


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


def dodging(collusion: Collusion, *, shows: bool = False) -> Behaviour:
    """Hides wrong aggregates behind cooked reports, and is away whenever another colluder's report is checked.

    `shows`: whether it shows its own rows then.
    """
    attack = make_attack("colluding_aggregate", collusion, start=2, scale=2.0)
    usual = attack.say

    def say(ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        involved = {*ctx.assignments, *ctx.assignments.values()}
        checked = collusion.members.intersection(ctx.assignments.values())
        if phase == "commit" and checked and ctx.peer not in involved:
            return None, {}
        return usual(ctx, phase, payload, message, sign)

    def dispatch(ctx: Context, phase: str, packets: Any) -> Any:
        return packets if shows or not phase.startswith(("evidence", "pass")) else {}

    attack.say, attack.dispatch = say, dispatch  # type: ignore[method-assign]
    return attack


@pytest.mark.parametrize("shows", [True, False])
def test_an_owner_is_not_saved_by_being_away(shows: bool, seed: int) -> None:
    """If the other senders show the rows, these decide. If not: had it been honest, it would have accused the
    reporter that covered for it."""
    fallen: Counter[str] = Counter()
    for run in range(seed * 4, seed * 4 + 4):
        collusion = Collusion(frozenset({1, 2, 3}), 8, run)
        behaviours = {i: dodging(collusion, shows=shows) for i in sorted(collusion.members)}
        config = ProtocolConfig(peers=8, byzantine=3, run_id=f"dodges {run}")
        driver = LocalDriver(config, QuadraticTask(D), behaviours=behaviours, collusion=collusion)
        results = play(driver, 25, torch.ones(D))
        check_honest(results, collusion.members)
        for result in results:
            for entry in result.removed:
                fallen[entry.kind] += entry.accused not in result.workers
    assert fallen["wrong_aggregate"] >= 3


class OwnNumerics(QuadraticTask):
    """Gradients that differ a little from machine to machine."""

    def __init__(self, d: int, machine: int) -> None:
        super().__init__(d)
        self.machine = machine

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        out.mul_(1 + 1e-6 * (self.machine + 1))


def own_numerics(peers: int) -> dict[int, Task]:
    return {peer: OwnNumerics(D, peer) for peer in range(peers)}


@pytest.mark.parametrize("byzantine", [0, 1])
def test_a_target_that_is_away_is_not_convicted(byzantine: int, seed: int) -> None:
    """Mode tolerant, nobody hostile: it is away whenever it would have to show what it committed to."""
    config = ProtocolConfig(peers=5, byzantine=byzantine, run_id=f"target {seed}", validation="tolerant")

    def when(ctx: Context) -> bool:
        duties = ctx.record.assignments
        return ctx.step >= 1 and ctx.peer in duties.values() and ctx.peer not in duties

    driver = LocalDriver(config, QuadraticTask(D), behaviours={seed % 5: Away(when)}, tasks=own_numerics(5))
    check_honest(play(driver, 12, torch.ones(D)), frozenset())


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


def scalars_of(peer: Any, record: StepRecord, bodies: Sequence[torch.Tensor], part: int) -> list[tuple[float, ...]]:
    return [said.products for said in part_scalars(peer.peer, record, record.aggregates[part], bodies, part)]


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


# What a judge was shown and the others were not.


class OneWitness(Attacker):
    """Mode tolerant: two colluders make the median distance zero, and show their work to some of the judges alone.

    The clipped rows of the colluders let CenteredClip of their own part be exactly one honest peer's part. Both report
    the distance zero, which turned V2 off, and one lies about its product. Then one is the other's validator.
    """

    def __init__(self, collusion: Collusion, shown: frozenset[int]) -> None:
        self.collusion, self.shown, self.fellows = collusion, shown, collusion.members

    def _sides(self, record: StepRecord) -> tuple[list[int], list[int], list[int]]:
        planned = [peer for peer in record.active if peer not in record.assignments]
        hostile = [peer for peer in planned if peer in self.fellows]
        return planned, hostile, [peer for peer in planned if peer not in self.fellows]

    def _half(self, record: StepRecord) -> bool:
        planned, hostile, _ = self._sides(record)
        return len(hostile) >= 2 and len(hostile) == len(planned) // 2

    def _seen(self) -> dict[int, torch.Tensor]:
        return dict(zip(self.collusion.honest_peers, self.collusion.rows, strict=True))

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        planned, hostile, honest = self._sides(ctx.record)
        if not self._half(ctx.record):
            return gradient
        rows, cut, tau = self._seen(), Split(gradient.numel(), len(planned)), ctx.record.tau
        gradient = gradient.clone()
        for part, owner in enumerate(planned):
            if owner in self.fellows:
                target = cut.view(rows[honest[0]], part)
                pull = sum(clipped((cut.view(rows[peer], part) - target).double(), tau) for peer in honest[1:])
                cut.view(gradient, part).copy_((target.double() - pull / len(hostile)).float())
        return gradient

    def aggregate(self, ctx: Context, part: int, value: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if not self._half(ctx.record):
            return value
        return ctx.record.cut.view(self._seen()[self._sides(ctx.record)[2][0]], part).clone()

    def report(self, ctx: Context, report: Report) -> Report:
        record = ctx.record
        if not self._half(record):
            return report
        norms, products = list(report.norms), list(report.products)
        for part in record.announced:
            if record.owner(part) in self.fellows:
                norms[part] = 0.0
                if ctx.peer == record.owner(part):
                    products[part] = tuple(product + 0.5 for product in products[part])
        return replace(report, norms=tuple(norms), products=tuple(products))

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        claims = super().accuse(ctx, claims)
        watched, first = (
            ctx.record.assignments.get(ctx.peer),
            ctx.record.phase in ("report", "accuse/0", "coin_reveal/0"),
        )
        if first and watched in self.fellows and ctx.last is not None and watched in ctx.last.workers:
            claims = (*claims, Claim(ctx.step - 1, watched, "undisclosed"))
        return tuple(sorted(set(claims)))

    def vote(self, ctx: Context, claim: Claim, verdict: str) -> str:
        return "false" if claim.kind == "wrong_aggregate" and claim.accused in self.fellows else verdict

    def dispatch(self, ctx: Context, phase: str, packets: Any) -> Any:
        if phase == "disclose":
            return {}
        if phase == "evidence/0":
            return {to: shown for to, shown in packets.items() if to in self.shown or to in self.fellows}
        return packets


def clipped(x: torch.Tensor, tau: float) -> torch.Tensor:
    norm = float(x.norm())
    return x * (tau / norm) if norm > tau else x


@pytest.mark.parametrize(("peers", "byzantine", "shown"), [(6, 2, 1), (8, 3, 2), (16, 7, 7)])
def test_evidence_shown_to_some_judges_bans_none_of_them(peers: int, byzantine: int, shown: int, seed: int) -> None:
    members = frozenset(1 + (seed + 2 * i) % (peers - 1) for i in range(byzantine))
    honest = [peer for peer in range(peers) if peer not in members]
    collusion = Collusion(members, peers, seed)
    config = ProtocolConfig(peers=peers, byzantine=byzantine, run_id=f"witness {seed}", validation="tolerant")
    behaviours: dict[int, Behaviour] = {i: OneWitness(collusion, frozenset(honest[:shown])) for i in members}
    driver = LocalDriver(config, QuadraticTask(D), behaviours=behaviours, collusion=collusion)
    check_honest(play(driver, 40 if peers < 16 else 15, torch.ones(D)), members)


# Two lives.


class RemembersItsFormerLife(Attacker):
    """Withholds its aggregate in its first life, and in the second passes on what the others said to that."""

    def __init__(self, life: int, memory: dict[int, Signed]) -> None:
        self.life, self.memory = life, memory

    def active(self, step: int) -> bool:
        return step == 3

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return None if self.life == 1 else value

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        if phase != "coin_commit/0":
            return outgoing
        record = ctx.record
        if self.life == 1:
            self.memory.update({i: said[0] for i, said in record.heard[phase].items() if i != ctx.peer})
            return outgoing
        assert ctx.identity is not None
        old = tuple(
            Relayed(message, ((ctx.peer, ctx.identity.sign(relay_digest(message.digest(record.context)))),))
            for message in self.memory.values()
        )
        return {i: (*outgoing.get(i, ()), *old) for i in record.remaining if i != ctx.peer} if round == 1 else outgoing


@pytest.mark.parametrize("former", ["the first", "resumed from the same checkpoint"])
def test_messages_of_a_former_life_prove_nothing(former: str, seed: int) -> None:
    attacker, memory = 1 + seed % 4, dict[int, Signed]()
    config = ProtocolConfig(peers=5, byzantine=1, run_id=f"resume {seed}")

    def cohort(life: int) -> LocalDriver:
        return LocalDriver(config, QuadraticTask(D), behaviours={attacker: RemembersItsFormerLife(life, memory)})

    first, params = cohort(1), torch.ones(D)
    for _ in range(3):
        params = params - 0.1 * first.step(params).gradient
    state, tensors = first.state()
    state, tensors = json.loads(json.dumps(state)), {name: x.clone() for name, x in tensors.items()}
    if former != "the first":
        first = cohort(1)
        first.restore(state, {name: x.clone() for name, x in tensors.items()}, life=b"second")
    first.step(params)
    assert memory, "the former life left nothing to replay"
    second = cohort(2)
    second.restore(state, tensors, life=b"third")
    check_honest(play(second, 3, params), frozenset({attacker}))


class ShowsPacketsOfAFormerLife(Attacker):
    """Makes all aggregates differ in its first life; in the second it shows those of the first as bad ones."""

    def __init__(self, life: int, kept: dict[int, Packet]) -> None:
        self.life, self.kept = life, kept

    def active(self, step: int) -> bool:
        return step == 3

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        return 2 * gradient if self.life == 1 else gradient

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if self.life == 2 and phase == "coin_commit/0":
            return sign(CoinCommit(payload.digest, tuple(sorted(self.kept)))), {}
        return message, {}

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        if self.life == 1:
            return claims
        return tuple(sorted(Claim(3, packet.sender, "bad_aggregate", part) for part, packet in self.kept.items()))

    def disclose(self, ctx: Context, claim: Claim, packets: Sequence[Any]) -> Sequence[Any]:
        return [self.kept[claim.part]] if self.life == 2 and claim.part in self.kept else packets


def keep_aggregates(peer: Peer, step: int, kept: dict[int, Packet]) -> None:
    """Have `peer` keep the packets in which the others send it their aggregates of `step`: part -> packet."""
    plain = peer.step

    def watched() -> Any:
        running, answer = plain(), None
        while True:
            try:
                effect = running.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = yield effect
            if isinstance(effect, Exchange) and effect.phase == "aggregate" and peer.t == step:
                kept.update({p.part: p for sent in answer.values() for p in sent if isinstance(p, Packet)})

    peer.step = watched  # type: ignore[method-assign]


def test_packets_of_a_former_life_convict_nobody(seed: int) -> None:
    attacker, kept = 1 + seed % 6, dict[int, Packet]()
    config = ProtocolConfig(peers=7, byzantine=1, run_id=f"packets {seed}")

    def cohort(life: int) -> LocalDriver:
        return LocalDriver(config, QuadraticTask(D), behaviours={attacker: ShowsPacketsOfAFormerLife(life, kept)})

    first, params = cohort(1), torch.ones(D)
    keep_aggregates(first.peers[attacker], 3, kept)
    for _ in range(3):
        params = params - 0.1 * first.step(params).gradient
    state, tensors = first.state()
    state, tensors = json.loads(json.dumps(state)), {name: x.clone() for name, x in tensors.items()}
    first.step(params)
    assert kept, "the former life left nothing to show"
    second = cohort(2)
    second.restore(state, tensors, life=b"second")
    check_honest(play(second, 3, params), frozenset({attacker}))


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
