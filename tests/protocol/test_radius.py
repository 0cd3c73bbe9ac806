"""`tau: auto`: everybody derives the same radius, it scales with the gradients, and liars cannot choose it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from btard.attacks import make_attack
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.messages import AnnouncedPart, Report
from btard.protocol.peer import Peer
from btard.protocol.radius import drawn_near, lower_quantile, next_radius
from btard.protocol.record import Start, StepRecord
from btard.protocol.snapshot import public_state
from btard.task import QuadraticTask
from tests.protocol.newcomers import cohort, key

AUTO: dict[str, Any] = {"tau": "auto"}


def make_record(norms: list[list[float]], tau: float = 3.0) -> StepRecord:
    """A step of as many workers as `norms` has rows, each with its distances to as many parts; i owns part i."""
    workers, parts = tuple(range(len(norms))), range(len(norms[0]))
    record = StepRecord(5, workers, {}, b"coin", tau, workers=workers)
    record.owners = tuple(parts)
    record.announced = {j: AnnouncedPart(j, b"h" * 32, workers) for j in parts}
    record.reports = {i: Report(tuple(row), ((0.0,),) * len(row)) for i, row in enumerate(norms)}
    return record


def radius(record: StepRecord, **settings: Any) -> float:
    return next_radius(ProtocolConfig(**{"peers": len(record.active), "validators": 0, **AUTO, **settings}), record)


def test_by_hand() -> None:
    record = make_record([[1.0, 10.0, 7.0], [2.0, 30.0, 8.0], [4.0, 20.0, 9.0]])
    assert radius(record) == 8.0, "the medians are 2, 20 and 8"
    assert radius(record, tau_quantile=0.3) == 7.0
    assert radius(record, tau=2.5) == 3.0, "a fixed radius stays"
    four = make_record([[1.0, 40.0], [2.0, 30.0], [3.0, 20.0], [4.0, 10.0]])
    assert radius(four) == 2.0, "the lower of two, among workers as among parts"
    assert [lower_quantile(np.array([3.0, 1.0, 2.0]), q) for q in (0.01, 1 / 3, 0.34, 1.0)] == [1.0, 1.0, 2.0, 3.0]


def test_what_does_not_count() -> None:
    norms = [[1.0, 10.0, 7.0], [2.0, 30.0, 8.0], [4.0, 20.0, 9.0]]
    skipped = make_record(norms)
    skipped.skipped = {2}
    assert radius(skipped) == 2.0
    expelled = make_record(norms)
    expelled.expelled = {1: "misreport"}
    assert radius(expelled) == 1.0, "part 0 without worker 1: 1 and 4; part 1 was owned by it; part 2: 7 and 9"
    unheld = make_record(norms)
    unheld.unheld = frozenset({0})
    assert radius(unheld) == 8.0, "most lacked part 0 before the coin; 20 and 8 remain"
    lacking = make_record(norms)
    lacking.missing = {0: (2,)}
    lacking.reports[0] = Report((1.0, 10.0, 0.0), ((0.0,),) * 3, missing=(2,))
    assert radius(lacking) == 8.0, "part 2 was reported on by two: 8 and 9"
    left_out = make_record(norms)
    left_out.announced[2] = AnnouncedPart(2, b"h" * 32, (0, 2))
    assert radius(left_out) == 7.0


def test_without_a_distance_the_radius_stays() -> None:
    assert radius(make_record([[0.0, 0.0], [0.0, 5.0], [0.0, 0.0]])) == 3.0
    nobody = make_record([[1.0], [1.0]])
    nobody.reports = {}
    assert radius(nobody) == 3.0
    everything = make_record([[1.0], [1.0]])
    everything.skipped = {0}
    assert radius(everything) == 3.0


@given(data=st.data(), workers=st.integers(3, 12), quantile=st.sampled_from([0.2, 0.35, 0.5]))
def test_liars_cannot_carry_it_out_of_the_honest_range(data: st.DataObject, workers: int, quantile: float) -> None:
    """Liars say what they like, and where they own the part the honest distances are theirs to choose too."""
    liars = data.draw(st.integers(0, max(0, int(np.ceil(quantile * workers)) - 1)))
    anything = st.floats(0, 1e300)
    honest = st.floats(1.0, 2.0)
    norms = [
        [data.draw(anything if i < liars or part < liars else honest) for part in range(workers)]
        for i in range(workers)
    ]
    found = radius(make_record(norms), tau_quantile=quantile)
    assert 1.0 <= found <= 2.0


@given(
    data=st.data(),
    honest=st.integers(1, 8),
    liars=st.integers(0, 4),
    more=st.integers(0, 4),
    tau=st.floats(1e-3, 1e3),
)
def test_nor_where_others_are_away(data: st.DataObject, honest: int, liars: int, more: int, tau: float) -> None:
    """`more` liars could be there than are: it lies between where it was and the honest range, or within that.

    It lies within, whoever of the liars is away, if more honest workers and owners are there than there are liars.
    """
    numbers, workers = st.floats(1.0, 2.0), honest + liars
    norms = [
        [data.draw(st.floats(0, 1e300) if i < liars or part < liars else numbers) for part in range(workers)]
        for i in range(workers)
    ]
    record = make_record(norms, tau)
    record.byzantine = liars + more
    found = radius(record)
    assert min(tau, 1.0) <= found <= max(tau, 2.0)
    if honest > record.byzantine:
        assert 1.0 <= found <= 2.0


def test_how_near_it_is_drawn() -> None:
    values = np.array([4.0, 1.0, 3.0, 2.0])  # of four with two liars, an honest one is at most 3, and one at least 2
    assert [drawn_near(tau, values, 2) for tau in (9.0, 2.5, 0.1)] == [3.0, 2.5, 2.0]
    assert [drawn_near(tau, values, 3) for tau in (9.0, 2.5, 0.1)] == [4.0, 2.5, 1.0], "one of them is honest"
    assert [drawn_near(tau, values, 1) for tau in (9.0, 0.1)] == [2.0, 2.0]


class AwayInTurn(Behaviour):
    """One of the `fellows` that works misses each step, the one that has missed the fewest, and all miss the first."""

    byzantine = True
    fellows = frozenset(range(1, 8))

    def active(self, step: int) -> bool:
        return True

    def say(self, ctx: Context, phase: str, payload: Any, message: Any, sign: Any) -> Any:
        working = self.fellows - ctx.assignments.keys()
        away = ctx.peer == min(working, key=lambda i: (ctx.record.absences.get(i, 0), i))
        return None if away or ctx.step == 0 else message, {}


@pytest.mark.parametrize("start", [1e-6, 1e6])
def test_liars_that_are_away_in_turn_do_not_keep_it_where_it_is(start: float) -> None:
    config = ProtocolConfig(peers=16, byzantine=7, run_id="away in turn", tau_start=start, **AUTO)
    driver = LocalDriver(config, QuadraticTask(64), behaviours={i: AwayInTurn() for i in AwayInTurn.fellows})
    taken = 0
    for result in steps_of(driver, 12, torch.ones(64)):
        [used] = {peer.tau for peer in driver.honest}
        distances = honest_distances(driver.honest[0], AwayInTurn.fellows)
        assert min(distances) <= used <= max(distances)
        taken += len(result.workers) < 15
    assert taken == 12 and AwayInTurn.fellows <= driver.peers.keys()


ATTACKS: list[tuple[str, dict[str, Any]]] = [
    ("sign_flip", {}),
    ("alie", {}),
    ("zero", {}),
    ("copy", {}),
    ("rop", {}),
    ("misreport", {"what": "both", "factor": 100.0}),
    ("misreport", {"tolerances": 1.5, "what": "norm"}),
    ("withheld_part", {}),
    ("withheld_aggregate", {}),
    ("wrong_aggregate", {"scale": 50.0}),
    ("colluding_aggregate", {"scale": 8.0}),
    ("colluding_aggregate", {"scale": 8.0, "cook": "both"}),
    ("late_aggregate", {}),
    ("sole_sender", {"listed": "fellows"}),
    ("vanishing_aggregator", {}),
    ("silent", {"phase": "commit"}),
]


def attacked(name: str, options: dict[str, Any], seed: int, **settings: Any) -> tuple[LocalDriver, Collusion]:
    """9 peers of which 4, the most that are tolerated here, attack from step 1 on."""
    members = frozenset({1, 3, 4, 7})
    collusion = Collusion(members, 9, seed)
    behaviours: dict[int, Behaviour] = {i: make_attack(name, collusion, start=1, **options) for i in members}
    config = ProtocolConfig(
        **{"peers": 9, "byzantine": 4, "validators": 0, "run_id": f"radius {name} {seed}", **AUTO, **settings}
    )
    return LocalDriver(config, QuadraticTask(61), behaviours=behaviours, collusion=collusion), collusion


def steps_of(driver: LocalDriver, steps: int, params: torch.Tensor) -> Iterator[StepResult]:
    for _ in range(steps):
        result = driver.step(params)
        params = params - 0.1 * result.gradient
        yield result


def honest_distances(peer: Peer, members: frozenset[int]) -> list[float]:
    """What honest workers reported in the last step on the parts of honest owners."""
    record = peer.last
    assert record is not None
    return [
        record.reports[i].norms[part]
        for part, entry in record.announced.items()
        for i in entry.senders
        if i not in members and record.owner(part) not in members
    ]


@pytest.mark.parametrize(("name", "options"), ATTACKS, ids=lambda value: str(value))
def test_all_honest_peers_derive_one_value_within_the_honest_range(name: str, options: dict[str, Any]) -> None:
    for seed in range(2):
        driver, collusion = attacked(name, options, seed)
        used = driver.config.first_tau
        for result in steps_of(driver, 5, torch.ones(61)):
            assert result.tau == used
            [used] = {peer.tau for peer in driver.honest}  # one for all
            distances = honest_distances(driver.honest[0], collusion.members)
            if used != result.tau:  # else too few parts and reports counted for an honest majority of them
                assert min(distances) <= used <= max(distances), f"step {result.step}"


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
def test_validators_judge_by_the_radius_of_the_step_on_trial(validation: str) -> None:
    """Honest reports are judged a step later, by when the radius is another: nobody honest is ever accused."""
    driver, collusion = attacked("sign_flip", {}, 0, validators=1, byzantine=3, peers=10, validation=validation)
    removed = {p for result in steps_of(driver, 40, torch.ones(61)) for entry in result.removed for p in entry.peers}
    assert removed and removed <= collusion.members


def test_it_scales_with_the_gradients() -> None:
    def radii(scale: float) -> list[float]:
        config = ProtocolConfig(peers=6, run_id="scale", tau_start=float("inf"), **AUTO)
        driver = LocalDriver(config, QuadraticTask(61, noise=scale))
        return [driver.step(torch.zeros(61)).tau or 0.0 for _ in range(5)]

    small, large = radii(1.0), radii(1000.0)
    assert large[1:] == pytest.approx([1000 * tau for tau in small[1:]], rel=1e-5)
    assert len(set(small)) == 5, "it follows the step"


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_that_stops_and_goes_on_comes_to_the_same_bits(stop: int) -> None:
    def advance(driver: LocalDriver, params: torch.Tensor, steps: int) -> tuple[torch.Tensor, list[float | None]]:
        taus = []
        for result in steps_of(driver, steps, params):
            params, taus = params - 0.1 * result.gradient, [*taus, result.tau]
        return params, taus

    def fresh() -> LocalDriver:
        return attacked("sign_flip", {}, 1, validators=1, byzantine=3, peers=10)[0]

    expected, taus = advance(fresh(), torch.ones(61), 9)
    first = fresh()
    params, before = advance(first, torch.ones(61), stop)
    state, tensors = first.state()
    second = fresh()
    second.restore(json.loads(json.dumps(state)), {name: x.clone() for name, x in tensors.items()}, life=b"resumed")
    params, after = advance(second, params, 9 - stop)
    assert torch.equal(params, expected) and before + after == taus


def test_a_newcomer_downloads_it_and_members_vouch_for_it() -> None:
    driver = cohort(**AUTO, byzantine=1)
    driver.enter(key("auto"))
    driver.advance(8)
    assert len({peer.tau for peer in driver.honest}) == 1 and len(driver.honest) == 6
    member = driver.peers[0]
    honest = public_state(member)
    member.tau *= 2
    assert public_state(member) != honest, "what is vouched for is a digest of this"


def test_another_radius_is_another_history() -> None:
    """Nothing that is signed under one radius is a message under another."""
    one, other = (Start(4, (0, 1, 2), {0: 1}, b"c" * 32, tau) for tau in (1.0, float(np.nextafter(1.0, 2.0))))
    config = ProtocolConfig(peers=3)
    assert one.binding(config) != other.binding(config)


def test_a_peer_that_starts_from_another_radius_is_not_heard() -> None:
    class Apart(Behaviour):
        byzantine = True

    config = ProtocolConfig(peers=5, byzantine=1, run_id="apart", **AUTO)
    driver = LocalDriver(config, QuadraticTask(41), behaviours={2: Apart()})
    driver.peers[2].tau = 2.0
    results = [driver.step(torch.ones(41)) for _ in range(config.max_absences)]
    assert all(2 not in result.workers for result in results)
    [entry] = [entry for result in results for entry in result.removed]
    assert entry.accused == 2 and entry.kind in ("gone", "silent")  # the latter if it is drawn as a validator


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": "automatic"}, "tau must be a number or auto, got 'automatic'"),
        ({"tau": "auto", "tau_quantile": 0.0}, "tau_quantile must be > 0 and <= 0.5, got 0.0"),
        ({"tau": "auto", "tau_quantile": 0.51}, "tau_quantile must be > 0 and <= 0.5"),
        ({"tau": "auto", "tau_quantile": float("nan")}, "tau_quantile must be > 0 and <= 0.5"),
        ({"tau": "auto", "tau_start": 0.0}, "tau_start must be > 0, got 0.0"),
        (
            {"tau": "auto", "byzantine": 3, "validators": 2, "tau_quantile": 0.375},
            r"tau_quantile must be > byzantine / \(peers - validators\) = 0.375 with tau auto, got 0.375",
        ),
        (
            {"tau": "auto", "byzantine": 2, "tau_quantile": 0.2},
            "= 0.222 with tau auto, got 0.2; or else liars hold the radius back",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProtocolConfig(**{"peers": 10, "validators": 1, **settings})


def test_the_first_step_has_the_number_or_the_start() -> None:
    assert ProtocolConfig(peers=3, tau=4).first_tau == 4.0
    assert ProtocolConfig(peers=3).first_tau == 1e-9
    assert ProtocolConfig(peers=3, tau="auto", tau_start=7.0).first_tau == 7.0


def test_it_comes_to_fit_where_half_of_the_workers_may_lie() -> None:
    with pytest.warns(UserWarning, match="hold back a tau that is auto"):
        config = ProtocolConfig(peers=3, byzantine=1, run_id="few")
    driver = LocalDriver(config, QuadraticTask(61, noise=1000.0))
    radii = [result.tau for result in steps_of(driver, 3, torch.zeros(61))]
    assert radii[0] == 1e-9 and all(100 < tau < 100_000 for tau in radii[1:] if tau)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_second_radius_fits_under_an_attack_from_the_first_step(scale: float) -> None:
    """A start of 1 would be a million times too large or too small; from above the way down would take many steps."""
    members = frozenset({1, 3, 4, 7})
    collusion = Collusion(members, 10)
    behaviours: dict[int, Behaviour] = {i: make_attack("sign_flip", collusion, scale=1000.0) for i in members}
    config = ProtocolConfig(peers=10, byzantine=4, run_id="first step")
    task = QuadraticTask(201, noise=scale)
    driver = LocalDriver(config, task, behaviours=behaviours, collusion=collusion)
    driver.step(torch.full((201,), scale))
    sigma = scale * (201 / 9) ** 0.5  # of a part
    assert 0.5 * sigma < driver.honest[0].tau < 2.1 * sigma
