"""Tolerant validation: honest peers with different numerics stay, whatever the others do; wrong gradients fall."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from btard.attacks import ATTACKS, make_attack
from btard.drivers.compute import CohortCompute
from btard.drivers.history import ParameterHistory
from btard.drivers.local import LocalDriver
from btard.protocol import peer, validate
from btard.protocol.behaviour import HONEST, Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute, Purpose
from btard.protocol.hashing import stream
from btard.protocol.identity import Identity
from btard.protocol.ledger import Entry
from btard.protocol.messages import EXCUSED, FALSE_CLAIM, GUILTY, Claim, Packet, Report
from btard.protocol.tolerance import difference, reach, shown_too_far, tolerated_deviation, too_far
from btard.task import QuadraticTask
from scripts import mixtures
from tests.protocol.cohort import Run

TOL = 0.02
GRADIENT_ATTACKS = [name for name, attack in ATTACKS.items() if attack.level == "gradient"]


class OwnNumerics(QuadraticTask):
    """The quadratic as one peer computes it: off by `size` of the gradient's norm, in a direction of this peer."""

    def __init__(self, d: int, peer: int, size: float) -> None:
        super().__init__(d)
        self.peer, self.size = peer, size

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **options: Any) -> None:
        super().gradients(params, requests, out, **options)
        for request, row in zip(requests, out, strict=True):
            direction = torch.from_numpy(
                stream("numerics", self.peer, request.seed).standard_normal(self.d, dtype=np.float32)
            )
            row.add_(direction, alpha=self.size * float(row.norm() / direction.norm()))


def run_mixed(
    behaviours: Mapping[int, Behaviour] | None = None,
    *,
    peers: int = 7,
    steps: int = 8,
    d: int = 61,
    seed: int = 0,
    sizes: Mapping[int, float] | None = None,
    collusion: Collusion | None = None,
    until_banned: frozenset[int] = frozenset(),
    **options: Any,
) -> Run:
    """Train with a task per peer; `sizes`: how far off each computes, by default half the tolerance."""
    behaviours = behaviours or {}
    byzantine = sum(behaviour.byzantine for behaviour in behaviours.values())
    chosen = {"peers": peers, "byzantine": byzantine, "run_id": f"tolerant {seed}", "relays": 0}
    chosen |= {"validation": "tolerant", "gradient_tol": TOL, **options}
    sizes = sizes or dict.fromkeys(range(peers), 0.5 * TOL)
    driver = LocalDriver(
        ProtocolConfig(**chosen),
        QuadraticTask(d),
        behaviours=behaviours,
        collusion=collusion,
        tasks={peer: OwnNumerics(d, peer, size) for peer, size in sizes.items()},
    )
    params, results = torch.ones(d), []
    for _ in range(steps):
        results.append(driver.step(params))  # raises if honest peers disagree
        params = params - 0.1 * results[-1].gradient
        if until_banned and not until_banned & set(results[-1].active):
            break
    return Run(driver, params, results)


@pytest.mark.parametrize("validators", [1, 3])
def test_over_twenty_seeds_no_honest_peer_is_banned_for_its_numerics(validators: int) -> None:
    for seed in range(20):
        run = run_mixed(seed=seed, validators=validators, cosine_tol=TOL**2)
        assert not run.entries, f"seed {seed}: {run.entries}"


def test_in_exact_validation_the_same_cohort_falls_apart() -> None:
    assert run_mixed(validation="exact", steps=3).entries


def test_one_machine_in_tolerant_validation_trains_to_the_same_bits_as_in_exact() -> None:
    same = dict.fromkeys(range(7), 0.0)
    exact, tolerant = run_mixed(sizes=same, validation="exact"), run_mixed(sizes=same)
    assert torch.equal(exact.params, tolerant.params) and not tolerant.entries


ATTACK_ROWS = [(name, {}) for name in GRADIENT_ATTACKS if name not in ("ipm", "delayed_gradient")]
ATTACK_ROWS += [("ipm", {"epsilon": 0.1}), ("ipm", {"epsilon": 0.6}), ("delayed_gradient", {"delay": 2})]


@pytest.mark.parametrize(("attack", "options"), ATTACK_ROWS)
def test_every_gradient_attack_is_caught_and_nobody_else(attack: str, options: dict[str, Any]) -> None:
    for seed in range(4):
        members = frozenset({1 + seed, 1 + (seed + 2) % 6})
        collusion = Collusion(members, 7, seed)
        attackers = {i: make_attack(attack, collusion, start=2, **options) for i in members}
        run = run_mixed(attackers, seed=seed, steps=120, collusion=collusion, until_banned=members)
        assert set(run.removed) == members, f"seed {seed}: {run.entries}"
        assert {entry.kind for entry in run.entries} == {"wrong_gradient"}
        assert {entry.verdict for entry in run.entries} == {GUILTY}


@pytest.mark.parametrize("seed", range(20))
def test_no_mixture_of_attacks_gets_an_honest_peer_banned(seed: int) -> None:
    mixture = mixtures.draw(seed, largest=9)
    driver = LocalDriver(
        replace(mixture.config, validation="tolerant", gradient_tol=TOL),
        QuadraticTask(mixtures.D),
        behaviours=mixture.attackers,
        collusion=mixture.collusion,
        links=mixture.links,
        tasks={peer: OwnNumerics(mixtures.D, peer, 0.5 * TOL) for peer in range(mixture.config.peers)},
    )
    mixtures.check(mixture, [entry for _ in range(10) for entry in driver.step(torch.ones(mixtures.D)).removed])


def test_clipped_gradients_are_compared_after_clipping() -> None:
    collusion = Collusion(frozenset({2, 3}), 7)
    attackers = {i: make_attack("sign_flip", collusion, start=1, scale=1.0) for i in (2, 3)}
    run = run_mixed(attackers, steps=80, collusion=collusion, clip_lambda=0.5, until_banned=frozenset({2, 3}))
    assert set(run.removed) == {2, 3}


def test_a_wrong_aggregate_that_cooked_reports_had_hidden_comes_to_light() -> None:
    kinds = set()
    for seed in range(4):
        members = frozenset({2, 5})
        collusion = Collusion(members, 7, seed)
        attackers = {i: make_attack("colluding_aggregate", collusion, start=2, scale=2.0) for i in members}
        run = run_mixed(attackers, seed=seed, steps=60, collusion=collusion, until_banned=members)
        assert set(run.removed) == members, f"seed {seed}: {run.entries}"
        kinds |= {entry.kind for entry in run.entries}
    assert kinds == {"wrong_gradient", "wrong_aggregate"}


class Byzantine(Behaviour):
    """Deviates by the functions it is given: `gradient`, the packets of a phase, its claims, its evidence."""

    byzantine = True

    def __init__(
        self,
        gradient: Callable[[Context, torch.Tensor], torch.Tensor] | None = None,
        packets: Callable[[str, int, Sequence[Packet]], Sequence[Packet]] | None = None,
        claims: Callable[[Context, tuple[Claim, ...]], tuple[Claim, ...]] | None = None,
        report: Callable[[Context, Report], Report] | None = None,
    ) -> None:
        self._gradient, self._packets, self._claims, self._report = gradient, packets, claims, report

    def active(self, step: int) -> bool:
        return True

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return self._gradient(ctx, gradient) if self._gradient else gradient

    def report(self, ctx: Context, report: Report) -> Report:
        return self._report(ctx, report) if self._report else report

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return self._claims(ctx, claims) if self._claims else claims

    def dispatch(
        self, ctx: Context, phase: str, packets: Mapping[int, Sequence[Packet]]
    ) -> Mapping[int, Sequence[Packet]]:
        if self._packets is None:
            return packets
        changed = {recipient: self._packets(phase, recipient, items) for recipient, items in packets.items()}
        return {recipient: items for recipient, items in changed.items() if items}


def backwards(ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
    return -gradient


def from_validators(phase: str, recipient: int, packets: Sequence[Packet]) -> Sequence[Packet]:
    """Withholds from the validator, and shows everything in the trial."""
    return () if phase == "disclose" else packets


TRIAL = ("evidence", "pass")
"""The phases of a trial in which packets are shown, and shown again to who lacks them."""


def from_everybody(phase: str, recipient: int, packets: Sequence[Packet]) -> Sequence[Packet]:
    return () if phase == "disclose" or phase.startswith(TRIAL) else packets


def from_half_of_the_judges(phase: str, recipient: int, packets: Sequence[Packet]) -> Sequence[Packet]:
    return () if phase == "disclose" or (phase.startswith(TRIAL) and recipient % 2) else packets


@pytest.mark.parametrize("withhold", [from_validators, from_everybody, from_half_of_the_judges])
def test_a_wrong_gradient_cannot_hide_by_not_being_shown(withhold: Any) -> None:
    for seed in range(6):
        run = run_mixed({3: Byzantine(backwards, withhold)}, seed=seed, steps=80, until_banned=frozenset({3}))
        shown = withhold is from_validators
        expected = {("undisclosed", GUILTY)} if shown else {("undisclosed", GUILTY), ("undelivered", "undelivered")}
        assert set(run.removed) == {3}, f"seed {seed}"
        assert (run.removed[3].kind, run.removed[3].verdict) in expected, f"seed {seed}"


@pytest.mark.parametrize(("withhold", "banned"), [(from_validators, set()), (from_everybody, {3})])
def test_who_withholds_a_right_gradient_stays_only_if_it_shows_it_in_the_trial(withhold: Any, banned: set[int]) -> None:
    for seed in range(4):
        run = run_mixed({3: Byzantine(packets=withhold)}, seed=seed, steps=20)
        assert set(run.removed) == banned, f"seed {seed}: {run.entries}"


def test_colluding_owners_cannot_make_an_honest_validator_pay_for_what_it_was_not_shown() -> None:
    """Two colluders show nothing to validators; in trials one shows to all but the validator, and neither helps."""
    members = frozenset({1, 4})
    for seed in range(6):
        attackers = {i: Byzantine(backwards, from_half_of_the_judges) for i in members}
        run = run_mixed(attackers, seed=seed, steps=100, until_banned=members)
        assert set(run.removed) == members, f"seed {seed}: {run.entries}"


JUNK: dict[str, Callable[[torch.Tensor], torch.Tensor | bytes]] = {
    "nan": lambda x: torch.full_like(x, torch.nan),
    "short": lambda x: x[:-1],
    "double": lambda x: x.double(),
    "garbage": lambda x: b"\0" * 100,
    "other": lambda x: x + 1,
    "oversize": lambda x: x.new_zeros(100 * len(x)),
}


@pytest.mark.parametrize("junk", JUNK)
def test_junk_shown_in_place_of_the_committed_parts_counts_as_nothing(junk: str) -> None:
    def send(phase: str, recipient: int, packets: Sequence[Packet]) -> Sequence[Packet]:
        if phase != "disclose" and not phase.startswith(TRIAL):
            return packets
        return [Packet(p.kind, p.sender, p.step, p.part, JUNK[junk](p.body), p.signature) for p in packets]

    run = run_mixed({3: Byzantine(backwards, send)}, seed=1, steps=60, until_banned=frozenset({3}))
    assert {p: e.kind for p, e in run.removed.items()} == {3: "undelivered"}


def claim_about_target(
    kind: str, among: frozenset[int] = frozenset(range(9))
) -> Callable[[Context, tuple[Claim, ...]], tuple[Claim, ...]]:
    def claims(ctx: Context, honest: tuple[Claim, ...]) -> tuple[Claim, ...]:
        target = ctx.record.assignments.get(ctx.peer)
        return (Claim(ctx.step - 1, target, kind),) if target in among else ()

    return claims


def test_a_false_accusation_costs_a_validator_its_place() -> None:
    for seed in range(6):
        accuser = Byzantine(claims=claim_about_target("wrong_gradient"))
        run = run_mixed({3: accuser}, seed=seed, steps=60, until_banned=frozenset({3}))
        assert {p: e.kind for p, e in run.removed.items()} == {3: "false_accusation"}, f"seed {seed}"


def test_a_false_accusation_by_anybody_else_costs_its_place_and_is_not_tried() -> None:
    def accuse(ctx: Context, honest: tuple[Claim, ...]) -> tuple[Claim, ...]:
        mine = ctx.record.assignments.get(ctx.peer) == 0
        return (Claim(ctx.step - 1, 0, "wrong_gradient"),) if ctx.last and 0 in ctx.last.workers and not mine else ()

    def forge(phase: str, recipient: int, packets: Sequence[Packet]) -> Sequence[Packet]:
        return [Packet("part", 0, 0, part, torch.ones(9), b"") for part in range(6)] if "evidence" in phase else packets

    members = frozenset({2, 4, 5})
    run = run_mixed({i: Byzantine(claims=accuse, packets=forge) for i in members}, peers=9, steps=4)
    assert set(run.removed) == members and {e.kind for e in run.entries} == {"malformed_claims"}


def test_a_validator_that_says_it_was_not_shown_anything_bans_nobody() -> None:
    for seed in range(4):
        run = run_mixed({i: Byzantine(claims=claim_about_target("undisclosed")) for i in (1, 2)}, seed=seed, steps=12)
        assert not run.entries, f"seed {seed}"


def test_only_its_validator_can_say_that_a_target_showed_nothing() -> None:
    def claims(ctx: Context, honest: tuple[Claim, ...]) -> tuple[Claim, ...]:
        targets = ctx.record.assignments
        return tuple(Claim(ctx.step - 1, i, "undisclosed") for v, i in targets.items() if ctx.peer not in (v, i))

    run = run_mixed({3: Byzantine(claims=claims)}, steps=5)
    assert {p: e.kind for p, e in run.removed.items()} == {3: "malformed_claims"}


def at_distance(multiple: float) -> Callable[[Context, torch.Tensor], torch.Tensor]:
    """A gradient `multiple` tolerances away from the peer's own, in a direction of its own."""

    def deviate(ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        u = torch.from_numpy(stream("edge", ctx.peer, ctx.step).standard_normal(len(gradient), dtype=np.float32))
        return gradient + u * (multiple * TOL * gradient.norm() / u.norm())

    return deviate


@pytest.mark.parametrize("multiple", [0.9, 1.0, 2.0])
def test_who_stays_near_the_tolerance_splits_nobody(multiple: float) -> None:
    """Fellows accuse it, so that judges vote who see it on either side. The driver raises if honest peers disagree."""
    votes: list[set[str]] = []
    for seed in range(4):
        members = frozenset({1, 2, 5})
        accuse = claim_about_target("wrong_gradient", members)
        attackers = {i: Byzantine(at_distance(multiple), claims=accuse) for i in members}
        sizes = {peer: 0.5 * TOL * (peer % 4) / 3 for peer in range(9)}
        run = run_mixed(attackers, peers=9, seed=seed, steps=20, sizes=sizes, until_banned=members)
        assert set(run.removed) <= members, f"seed {seed}: {run.entries}"
        votes += [set(entry.votes.values()) for entry in run.entries]
    assert votes
    if multiple == 0.9:
        assert {GUILTY, FALSE_CLAIM} in votes, "no judges differed: this tests nothing"


@pytest.mark.parametrize(("multiple", "falls"), [(0.4, False), (2.6, True)])
def test_beyond_what_rounding_can_explain_everybody_falls_and_within_it_nobody(multiple: float, falls: bool) -> None:
    for seed in range(4):
        steps = 80 if falls else 15
        run = run_mixed({3: Byzantine(at_distance(multiple))}, seed=seed, steps=steps, until_banned=frozenset({3}))
        assert set(run.removed) == ({3} if falls else set()), f"seed {seed}"


def confided(seed: int) -> tuple[Run, frozenset[int]]:
    """Two colluders' lies about a third one's right aggregates cancel; in trials they show their gradients to peer 0.

    So peer 0 alone can correct the sum, and finds it off.
    """
    members = frozenset({2, 3, 6})

    def lie(ctx: Context, report: Report) -> Report:
        sign = {2: 1.0, 3: -1.0, 6: 0.0}[ctx.peer]
        rows = [
            (row[0] + sign * 0.2 if owner == 6 else row[0],)
            for row, owner in zip(report.products, ctx.record.owners, strict=True)
        ]
        return Report(report.norms, tuple(rows), report.missing, report.sizes)

    def confide(phase: str, recipient: int, packets: Sequence[Packet]) -> Sequence[Packet]:
        of_one = len({packet.sender for packet in packets}) == 1  # its own gradient, not the parts it averaged
        hidden = phase == "disclose" or (phase.startswith(TRIAL) and of_one and recipient != 0)
        return () if hidden else packets

    def spare(ctx: Context, honest: tuple[Claim, ...]) -> tuple[Claim, ...]:
        return tuple(claim for claim in honest if claim.accused not in members)

    attackers = {i: Byzantine(packets=confide, report=lie, claims=spare) for i in members}
    return run_mixed(attackers, peers=9, seed=seed, steps=30, until_banned=frozenset({2, 3})), members


def test_an_alarm_that_a_liar_confided_to_one_honest_peer_does_not_cost_that_peer_its_place() -> None:
    for seed in range(3):
        run, members = confided(seed)
        assert run.entries and set(run.removed) <= members, f"seed {seed}: {run.entries}"


class Overflowing(OwnNumerics):
    """Gets no number out of the batches of others."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **options: Any) -> None:
        super().gradients(params, requests, out, **options)
        for request, row in zip(requests, out, strict=True):
            if request.peer != self.peer:
                row.fill_(torch.inf)


def test_a_peer_that_has_nothing_to_compare_with_accuses_nobody_and_excuses() -> None:
    for seed in range(3):
        tasks = {peer: OwnNumerics(61, peer, 0.5 * TOL) for peer in range(7)} | {5: Overflowing(61, 5, 0.0)}
        config = ProtocolConfig(7, 1, run_id=f"overflow {seed}", relays=0, validation="tolerant", gradient_tol=TOL)
        driver = LocalDriver(config, QuadraticTask(61), behaviours={3: Byzantine(backwards)}, tasks=tasks)
        entries: list[Entry] = []
        while not entries and len(driver.honest[0].coins) < 80:
            entries += driver.step(torch.ones(61)).removed
        assert [entry.peers for entry in entries] == [(3,)] and entries[0].votes["5"] == EXCUSED


class NoAnswer(OwnNumerics):
    """Gets no number out of a batch on trial, as nobody honest does; a validator computes its target's in time."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **options: Any) -> None:
        super().gradients(params, requests, out, **options)
        for request, row in zip(requests, out, strict=True):
            if request.purpose is Purpose.JUDGE:
                row.fill_(torch.inf)


@pytest.mark.parametrize("kind", ["wrong_gradient", "undisclosed"])
def test_judges_that_have_nothing_to_compare_with_cost_nobody_its_place(kind: str) -> None:
    """Neither an honest accuser of a liar, nor an honest target of whom a liar says that it showed nothing."""
    liars = {3: Byzantine(backwards) if kind == "wrong_gradient" else Byzantine(claims=claim_about_target(kind))}
    tasks = {peer: NoAnswer(61, peer, 0.0) for peer in range(7)}
    config = ProtocolConfig(7, 1, run_id="no answer", relays=0, validation="tolerant", gradient_tol=TOL)
    driver = LocalDriver(config, QuadraticTask(61), behaviours=liars, tasks=tasks)
    trials = 0
    for _ in range(12):
        assert not driver.step(torch.ones(61)).removed
        trials += any(claim.kind == kind for claim in driver.peers[0].current.trials.get(0, ()))
    assert trials


def test_a_resumed_run_goes_on_to_the_same_bits() -> None:
    def driver() -> LocalDriver:
        config = ProtocolConfig(7, 1, run_id="resume", validation="tolerant", gradient_tol=TOL)
        tasks = {peer: OwnNumerics(61, peer, 0.5 * TOL) for peer in range(4)}
        return LocalDriver(config, QuadraticTask(61), behaviours={6: Byzantine(at_distance(1.0))}, tasks=tasks)

    whole, first, second = driver(), driver(), driver()
    params = torch.ones(61)
    for _ in range(5):
        assert torch.equal(whole.step(params).gradient, first.step(params).gradient)
    state, tensors = first.state()
    second.restore(state, {name: tensor.clone() for name, tensor in tensors.items()}, life=b"resumed")
    for _ in range(5):
        expected, got = whole.step(params), second.step(params)
        assert torch.equal(expected.gradient, got.gradient) and expected.removed == got.removed


@pytest.mark.parametrize("mode", ["batched", "per_peer"])
def test_everybody_is_answered_by_its_own_task(mode: Any) -> None:
    common, other = QuadraticTask(5), OwnNumerics(5, 1, 0.5)
    history = ParameterHistory(5, 2)
    history.record(0, torch.zeros(5), 4)
    compute = CohortCompute(common, history, mode, {1: other, 2: other})
    requests = [Compute(0, peer, bytes([peer]) * 32) for peer in (0, 1, 2, 1)]
    rows = compute.answer(0, requests, [0, 1, 2, 3])
    for row, request, task in zip(rows, requests, (common, other, other, common), strict=True):
        expected = torch.empty(1, 5)
        task.gradients(torch.zeros(5), [request], expected)
        assert torch.equal(row, expected[0])
    with pytest.raises(ValueError, match=r"peer 1 has 6 parameters, the cohort's has 5"):
        CohortCompute(common, history, mode, {1: QuadraticTask(6)})


def test_distances_known_by_hand() -> None:
    x = torch.tensor([3.0, 4.0])
    assert difference(x, x) == difference(x * 0, x * 0)
    assert (difference(x, x).relative, difference(x, x).cosine) == (0, 0)
    assert difference(x, 2 * x).relative == pytest.approx(0.5) and difference(x, 2 * x).cosine == 0
    assert difference(x, -x).relative == pytest.approx(2) and difference(x, -x).cosine == pytest.approx(2)
    turned = difference(x, torch.tensor([-4.0, 3.0]))
    assert turned.relative == pytest.approx(2**0.5) and turned.cosine == pytest.approx(1)
    assert difference(x, 0 * x).relative == 1
    huge = torch.full((1000,), 3e38)
    assert difference(huge, -huge).relative == pytest.approx(2)
    near = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-6])
    assert difference(*near).cosine == pytest.approx(0.5e-12, rel=1e-6)  # 1 - cos in float32, even in float64, loses it


vectors = st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3).map(torch.tensor)


@settings(max_examples=300, deadline=None)
@given(vectors, vectors, vectors)
def test_both_distances_obey_the_triangle_inequality(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> None:
    ab, bc, ac = difference(a, b), difference(b, c), difference(a, c)
    assert ac.relative <= ab.relative + bc.relative + 1e-9
    if all(float(x.norm()) > 1e-3 for x in (a, b, c)):
        assert ac.cosine**0.5 <= ab.cosine**0.5 + bc.cosine**0.5 + 1e-6
    assert difference(b, a) == ab


corners = st.lists(st.integers(-3, 3), min_size=3, max_size=3).map(lambda x: torch.tensor(x, dtype=torch.float32))


@settings(max_examples=1000, deadline=None)
@given(corners, corners, corners, st.integers(0, 40), st.integers(0, 3), st.sampled_from([None, 1e-2]))
def test_some_entries_convict_nobody_honest_and_what_convinces_a_validator_convinces_each_judge(
    r: torch.Tensor, s: torch.Tensor, u: torch.Tensor, far: int, shown: int, cosine_tol: float | None
) -> None:
    """`r` and `near` are honest, as far apart as the tolerance lets them be; the committed `g` is anywhere."""
    config = ProtocolConfig(5, validation="tolerant", gradient_tol=0.3, cosine_tol=cosine_tol)

    def wrong(committed: torch.Tensor, own: torch.Tensor, margin: float) -> bool:
        return shown_too_far(config, committed[:shown], own[:shown], float(own.double().norm()), margin=margin)

    near = r + s * (0.3 * float(r.norm()) / max(1.0, float(s.norm())))
    g = r + u * (far / 10 * float(r.norm()) / max(1.0, float(u.norm())))
    for mine, other in ((r, near), (near, r)):
        if not too_far(config, mine, other, margin=1 + 1e-6):
            assert not wrong(mine, other, 1 + 1e-4)
            assert not wrong(g, mine, 2 + 1e-4) or wrong(g, other, 1 - 1e-4)


def test_more_entries_never_make_less_of_it() -> None:
    config = ProtocolConfig(5, validation="tolerant", gradient_tol=0.1)
    r = torch.ones(4)
    assert reach(0.1, margin=2) == pytest.approx(0.81**-1 - 1)
    found = [shown_too_far(config, (r + 0.3)[:i], r[:i], 2.0, margin=2) for i in range(5)]
    assert found == [False, False, False, True, True]  # 0.3 of sqrt(i) / 2 of the whole
    assert not shown_too_far(config, r[:0], r[:0], 0.0, margin=1)
    assert shown_too_far(config, r[:1], 0 * r[:1], 0.0, margin=1)


def test_the_margins_are_those_of_distances() -> None:
    config = ProtocolConfig(5, validation="tolerant", gradient_tol=0.1, cosine_tol=1e-3)
    x, right = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    chord = 1e-3**0.5 * 2**0.5
    assert not too_far(config, x, x + 0.99 * chord * right, margin=1)
    assert too_far(config, x, x + 1.01 * chord * right, margin=1)
    assert not too_far(config, x, x + 1.98 * chord * right, margin=2)
    assert too_far(config, x, x + 2.05 * chord * right, margin=2)
    assert not too_far(config, x, 0.81 * x, margin=2) and too_far(config, x, 0.79 * x, margin=2)
    assert tolerated_deviation(0.1) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("name", "value"), [("validation", "loose"), ("gradient_tol", 0.0), ("gradient_tol", 0.5), ("cosine_tol", 0.25)]
)
def test_settings_that_could_convict_nobody_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        ProtocolConfig(5, **{name: value})


@pytest.mark.parametrize("attacks", [False, True])
def test_a_newcomer_shows_its_gradients_to_its_validators(attacks: bool) -> None:
    config = ProtocolConfig(6, run_id="newcomer", validation="tolerant", gradient_tol=TOL, probation=3)
    tasks = {peer: OwnNumerics(31, peer, 0.5 * TOL) for peer in range(7)}
    driver = LocalDriver(config, QuadraticTask(31), tasks=tasks)
    driver.step(torch.ones(31))
    driver.join(Identity.from_seed("newcomer", 6), Byzantine(backwards) if attacks else HONEST)
    entries = [entry for _ in range(15) for entry in driver.step(torch.ones(31)).removed]
    removed = [(entry.kind, entry.peers) for entry in entries if entry.peers]
    assert removed == ([("wrong_gradient", (6,))] if attacks else [])
    assert (6 in driver.honest[0].active) != attacks


@pytest.mark.parametrize("removed", ["distance", "claim"])
def test_each_check_is_needed(removed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the distance a shown wrong gradient passes, without the claim one that is not shown does."""
    attacker = Byzantine(backwards, from_validators if removed == "claim" else None)
    assert set(run_mixed({3: attacker}, steps=30, until_banned=frozenset({3})).removed) == {3}
    if removed == "distance":
        monkeypatch.setattr(validate, "too_far", lambda *a, **k: False)
    else:
        honest = validate.validate
        unclaimed = lambda *a: [claim for claim in honest(*a) if claim.kind != "undisclosed"]  # noqa: E731
        monkeypatch.setattr(peer, "validate", unclaimed)
    assert not run_mixed({3: attacker}, steps=30).entries
