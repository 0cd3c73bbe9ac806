"""Healing: which states are looked at, which one is chosen, and that all drivers go back alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from btard.attacks import make_attack
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.drivers.trail import State, Trail
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Losses, Measure
from btard.protocol.hashing import digest
from btard.protocol.heal import (
    CEILING,
    HEALED,
    _membership,
    candidates,
    choose,
    is_kept,
    measured,
    oldest,
    spacing,
    window,
)
from btard.protocol.law import survival_law
from btard.protocol.ledger import GRADUATED, Entry
from btard.protocol.messages import NOBODY, Measured
from btard.task import QuadraticTask

D, MEMBERS, START, STEPS = 60, frozenset({1, 3, 5}), 20, 45


def config(**settings: Any) -> ProtocolConfig:
    return ProtocolConfig(**{"peers": 8, "byzantine": 3, "run_id": "heal", "heal": "auto", "tau": 100.0, **settings})


def ban(step: int, *peers: int) -> Entry:
    return Entry(step, "wrong_gradient", "guilty", peers[0], (), peers, about_step=step - 1)


def back(step: int, to: int) -> Entry:
    return Entry(step, HEALED, "public", NOBODY, (), (), about_step=to)


# Which states are looked at.


@pytest.mark.parametrize(("peers", "validators"), [(4, 1), (16, 1), (16, 3)])
def test_nine_in_ten_attackers_are_caught_within_the_window(peers: int, validators: int) -> None:
    settings = config(peers=peers, byzantine=1, validators=validators)
    caught = survival_law(peers, 1, validators, 200, start=1)[:, 0]
    assert caught[window(settings)] >= 0.9 > caught[window(settings) - 1]


def test_where_nobody_is_caught_or_nothing_heals_nothing_is_kept() -> None:
    for settings in (config(heal="off"), config(validators=0)):
        assert window(settings) == 0 and not any(is_kept(settings, [], step) for step in range(50))
        assert candidates(settings, [ban(9, 1)], 10) == ()


def test_a_removal_in_the_step_before_is_what_starts_it() -> None:
    settings = config(heal=16)
    assert spacing(settings) == 2
    assert candidates(settings, [ban(19, 1)], 20) == (4, 6, 8, 10, 12, 14, 16, 18)
    assert candidates(settings, [ban(18, 1)], 20) == ()
    assert candidates(settings, [back(19, 19)], 20) == ()
    assert candidates(settings, [ban(2, 1)], 3) == (0, 2)


def test_no_state_is_older_than_the_last_healing() -> None:
    settings = config(heal=16)
    entries = [ban(9, 1), back(10, 4), ban(19, 3)]
    assert candidates(settings, entries, 20) == (11, 12, 14, 16, 18)
    assert is_kept(settings, entries[:2], 11) and not is_kept(settings, entries[:2], 13)
    # One that stayed where it was changes nothing.
    assert candidates(settings, [ban(9, 1), back(10, 10), ban(19, 3)], 20) == (4, 6, 8, 10, 12, 14, 16, 18)


def test_a_newcomers_damage_reaches_back_no_further_than_its_membership() -> None:
    settings = config(heal=16, probation=2)
    entries = [Entry(14, GRADUATED, "public", 8, (), (), about_step=14), ban(19, 8)]
    assert candidates(settings, entries, 20) == (16, 18)
    assert candidates(settings, [*entries, ban(19, 2)], 20) == (4, 6, 8, 10, 12, 14, 16, 18)
    assert candidates(settings, [ban(19, 9)], 20) == (), "a newcomer on probation was no member, and did nothing"


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["ban", "back", "joined"]), st.integers(1, 9)), max_size=6),
    st.integers(1, 41),
)
def test_candidates_are_the_kept_steps_of_the_window(heal: int, said: list[tuple[int, str, int]], step: int) -> None:
    law, entries = config(heal=heal, probation=2), [ban(step - 1, 1)]
    for at, kind, number in said:
        joined = Entry(at, GRADUATED, "public", number, (), (), about_step=at)
        entries.append({"ban": ban(at, number), "back": back(at, max(0, at - number)), "joined": joined}[kind])
    entries.sort(key=lambda entry: entry.step)
    before = [entry for entry in entries if entry.step < step]
    since = _membership(law, before, step)
    assert since is not None
    first = max(oldest(law, before, step), since)
    assert candidates(law, entries, step) == tuple(s for s in range(first, step) if is_kept(law, before, s))


def test_a_long_window_is_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's own keys sign any window and any step: a folder of 48 KB kept an audit busy for hours."""
    monkeypatch.setattr("btard.protocol.heal.is_kept", lambda *_: pytest.fail("each step of the window is looked at"))
    step = 10**9 + 1
    kept = tuple(range(step - 1 - 7 * 125_000, step, 125_000))
    assert candidates(config(heal=10**6), [ban(step - 1, 1)], step) == kept
    with pytest.raises(ValueError, match="heal must be >= 1 and <= 1000000 steps"):
        config(heal=10**6 + 1)


# What is said of them, and what is chosen.


def losses(*rows: Iterable[float]) -> Losses:
    values = torch.tensor([list(row) for row in rows], dtype=torch.float64)
    return Losses(tuple(digest("state", i) for i in range(len(values))), values)


def test_a_state_is_clearly_better_by_three_standard_errors_of_the_paired_difference() -> None:
    noise = torch.linspace(-1, 1, 101, dtype=torch.float64)
    error = float(noise.std() / math.sqrt(101))
    for factor, clear in ((2.9, False), (3.1, True)):
        said = measured(losses(10 * noise - factor * error + noise, 10 * noise))
        assert (said.bounds[0] < 0) == clear
    assert measured(losses(torch.ones(5), torch.ones(5))).bounds == (0.0,), "equal is not better"


def test_what_is_not_a_number_counts_as_the_worst() -> None:
    said = measured(losses([1.0, 1.0], [math.nan, math.inf]))
    assert said.fits(2) and said.losses == (1.0, CEILING) and said.bounds[0] < 0


def say(*found: float, bounds: Iterable[float], view: str = "as all") -> Measured:
    return Measured(tuple(digest(view, i) for i in range(len(found))), found, tuple(bounds))


BETTER, SAME = say(1.0, 0.5, 3.0, bounds=(-1, -2)), say(3.0, 3.0, 3.0, bounds=(0, 0))
STEPS_LOOKED_AT = (4, 8, 10)


def chosen(said: Mapping[int, Measured], active: int = 7) -> int:
    return choose(range(active), STEPS_LOOKED_AT, said).step


def test_the_best_of_the_clearly_better_states_is_chosen() -> None:
    choice = choose(range(7), STEPS_LOOKED_AT, dict.fromkeys(range(7), BETTER))
    assert choice.step == 8 and choice.losses == {4: 1.0, 8: 0.5, 10: 3.0} and choice.digests == BETTER.digests
    assert chosen(dict.fromkeys(range(7), SAME)) == 10
    assert chosen(dict.fromkeys(range(7), say(0.5, 0.5, 3.0, bounds=(-1, -1)))) == 8, "of equals the later one"
    assert chosen(dict.fromkeys(range(7), say(0.1, 0.5, 3.0, bounds=(0, -1)))) == 8, "lower, but by chance"


@pytest.mark.parametrize("honest", [BETTER, SAME])
def test_what_fewer_than_half_say_changes_nothing(honest: Measured) -> None:
    truth = choose(range(7), STEPS_LOOKED_AT, dict.fromkeys(range(7), honest))
    lies = [
        say(0.0, 9.0, 9.0, bounds=(-9, 9)),
        say(9.0, 9.0, 0.0, bounds=(9, 9)),
        say(0.0, 0.0, 9.0, bounds=(-9, -9), view="another"),
    ]
    for lie in lies:
        said = dict.fromkeys(range(4), honest) | dict.fromkeys((4, 5, 6), lie)
        assert choose(range(7), STEPS_LOOKED_AT, said) == truth
    assert choose(range(7), STEPS_LOOKED_AT, dict.fromkeys(range(4), honest)) == truth, "and silence neither"


def test_without_the_word_of_more_than_half_of_the_active_peers_everybody_stays() -> None:
    assert chosen(dict.fromkeys(range(4), BETTER), active=8) == 10
    views = {i: replace_view(BETTER, str(i % 2)) for i in range(8)}
    assert chosen(views, active=8) == 10, "nor where they do not have the same states"


def replace_view(said: Measured, view: str) -> Measured:
    return Measured(tuple(digest(view, i) for i in range(len(said.digests))), said.losses, said.bounds)


@pytest.mark.parametrize("states", [2, 4])
def test_a_message_of_another_form_does_not_fit(states: int) -> None:
    assert BETTER.fits(3) and not BETTER.fits(states)
    assert not say(1.0, math.nan, bounds=(0,)).fits(2) and not say(1.0, 1.0, bounds=(-math.inf,)).fits(2)


# What is kept of the states.


class Unmeasurable:
    d = D

    def gradients(self, params: torch.Tensor, requests: Any, out: torch.Tensor, **_: Any) -> None: ...


def test_a_task_that_cannot_compare_states_is_refused_where_they_are_compared() -> None:
    with pytest.raises(ValueError, match="heal is 'auto', but Unmeasurable has no public_losses"):
        Trail(config(), Unmeasurable())
    Trail(config(heal="off"), Unmeasurable())


def test_states_are_copies_and_as_many_as_may_be_needed() -> None:
    trail = Trail(config(heal=16), QuadraticTask(D))
    params, statistics = torch.zeros(D), torch.zeros(1)
    for step in range(40):
        params.fill_(step)
        statistics.fill_(-step)
        trail.record(step, [], State({"parameters": params}, {"statistics": statistics}))
    assert list(trail.states) == [22, 24, 26, 28, 30, 32, 34, 36, 38]
    for step, state in trail.states.items():
        assert state.tensors["parameters"].eq(step).all() and state.tensors["statistics"].eq(-step).all()
    assert trail.measure(Measure((22, 30, 39), b"seed" * 8)) is not None
    assert trail.measure(Measure((20, 30, 39), b"seed" * 8)) is None, "it had to be forgotten"
    trail.record(40, [back(39, 30)], State({"parameters": params}, {}))
    assert list(trail.states) == [40]
    restored = Trail(config(heal=16), QuadraticTask(D))
    restored.restore({name: x.clone() for name, x in trail.state().items()})
    assert restored.states[40].digest() == trail.states[40].digest()


# Whole cohorts.


class Run:
    """A cohort in one process under a sign flip, as a training loop has it: parameters and a momentum."""

    def __init__(self, attack: str = "sign_flip", members: frozenset[int] = MEMBERS, **settings: Any) -> None:
        collusion = Collusion(members, 8, 0)
        behaviours = {i: make_attack(attack, collusion, start=START) for i in members}
        self.driver = LocalDriver(config(**settings), QuadraticTask(D), behaviours=behaviours, collusion=collusion)
        self.state = {"parameters": torch.full((D,), 5.0), "momentum": torch.zeros(D)}
        self.entries: list[Entry] = []
        self.past: dict[int, dict[str, torch.Tensor]] = {}

    def step(self) -> StepResult:
        now = self.driver.honest[0].t
        self.past[now] = {name: x.clone() for name, x in self.state.items()}
        result = self.driver.step(self.state["parameters"], {"momentum": self.state["momentum"]})
        self.entries += result.removed
        if result.back_to is None:
            self.state["momentum"] = 0.5 * self.state["momentum"] + result.gradient
            self.state["parameters"] = self.state["parameters"] - 0.05 * self.state["momentum"]
        else:
            self.state = {name: x.clone() for name, x in result.state.items()}
        return result

    def run(self, steps: int = STEPS) -> Run:
        for _ in range(steps):
            self.step()
        return self

    @property
    def loss(self) -> float:
        return float(self.state["parameters"].square().sum() / 2)


@pytest.fixture(scope="module")
def healed() -> Run:
    return Run().run()


def test_after_the_attack_the_training_stands_where_it_would_some_steps_before(healed: Run) -> None:
    unhealed = Run(heal="off").run()
    assert {peer for entry in healed.entries for peer in entry.peers} == MEMBERS
    lost = sum(entry.step + 1 - entry.about_step for entry in healed.entries if entry.kind == HEALED)
    assert healed.loss < 1.2 * Run(members=frozenset()).run(STEPS - lost).loss < 0.1 * unhealed.loss


def test_everything_goes_back_to_what_it_was_and_time_goes_on(healed: Run) -> None:
    returns = [entry for entry in healed.entries if entry.kind == HEALED and entry.about_step < entry.step]
    assert returns and len(healed.driver.honest[0].coins) == STEPS + 1
    for entry in returns:
        assert entry.step - entry.about_step <= window(config())
        then, after = healed.past[entry.about_step], healed.past[entry.step + 1]
        assert all(torch.equal(then[name], after[name]) for name in then)
        assert entry.losses[str(entry.about_step)] < entry.losses[str(entry.step)]
        assert entry.evidence == State(then, {}).digest().hex()


def test_every_removal_of_a_member_is_followed_by_a_choice(healed: Run) -> None:
    chosen_at = {entry.step for entry in healed.entries if entry.kind == HEALED}
    for entry in healed.entries:
        if entry.peers and candidates(config(), healed.entries, entry.step + 1):
            assert entry.step + 1 in chosen_at


@pytest.mark.parametrize("stop", [21, 22, 25])
def test_a_resumed_run_goes_back_as_one_that_was_not_interrupted(healed: Run, stop: int) -> None:
    first = Run().run(stop)
    state, tensors = first.driver.state()
    second = Run()
    second.driver.restore(state, {name: x.clone() for name, x in tensors.items()}, life=None)
    second.state, second.entries = first.state, first.entries
    second.run(STEPS - stop)
    assert second.entries == healed.entries
    assert all(torch.equal(second.state[name], healed.state[name]) for name in healed.state)


@pytest.mark.parametrize("attack", ["silent", "crash"])
def test_who_hits_and_vanishes_is_healed_too(attack: str) -> None:
    run = Run(attack).run(START + 12)
    assert {peer for entry in run.entries for peer in entry.peers} == MEMBERS
    assert any(entry.kind == HEALED for entry in run.entries)


def test_the_radius_goes_back_too() -> None:
    run, radii = Run("random_direction", tau="auto"), []
    for _ in range(STEPS):
        radii.append(run.step().tau)
    returns = [entry for entry in run.entries if entry.kind == HEALED and entry.about_step < entry.step]
    assert returns
    for entry in returns:
        assert radii[entry.step + 1] == radii[entry.about_step]


def test_on_a_plateau_nobody_goes_back() -> None:
    """An attacker that sacrifices itself costs no step where the states are equally good."""
    run = Run("zero", heal=16, tau=1.0)
    run.state["parameters"] = torch.zeros(D)
    run.run()
    assert {peer for entry in run.entries for peer in entry.peers} == MEMBERS
    chosen_steps = [(entry.step, entry.about_step) for entry in run.entries if entry.kind == HEALED]
    assert chosen_steps and all(step == to for step, to in chosen_steps)


def test_tolerant_peers_agree_by_the_median() -> None:
    run = Run(validation="tolerant").run()
    assert any(entry.kind == HEALED and entry.about_step < entry.step for entry in run.entries)
    assert run.loss < 100


def test_the_config_says_what_heal_may_be() -> None:
    for wrong in (0, -3, "soon"):
        with pytest.raises(ValueError, match="heal"):
            replace(config(), heal=wrong)
