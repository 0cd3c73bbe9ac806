"""Attacks on healing: what they cost, what they cannot do, and what healing cannot see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch

from btard.attacks import make_attack
from btard.attacks.healing import HitAndRun
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.commit import Incomplete
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Losses
from btard.protocol.heal import HEALED, batch_seed, candidates, measured, window
from btard.protocol.identity import Identity
from btard.protocol.join import GRADUATED
from btard.protocol.ledger import Entry
from btard.protocol.peer import Outcome
from btard.task import QuadraticTask, Task

PEERS, D, W, START = 8, 30, 4, 5
MEMBERS = frozenset({1, 3, 5})
RATE, MOMENTUM = 0.05, 0.5

Tensors = dict[str, torch.Tensor]
Plans = Mapping[int, tuple[str, dict[str, Any]]]
"""Peer -> the attack that it runs, and its options."""


class Cohort(LocalDriver):
    """A local driver under which every honest peer applies its own outcomes to a state of its own, with a momentum."""

    def __init__(self, behaviours: Mapping[int, Behaviour] | None = None, task: Task | None = None, **settings: Any):
        options = {name: settings.pop(name) for name in ("collusion",) if name in settings}
        config = {"peers": PEERS, "byzantine": 3, "run_id": "heal attacks", "heal": W, "tau": 1000.0, **settings}
        super().__init__(ProtocolConfig(**config), task or QuadraticTask(D), behaviours=behaviours, **options)
        self.hostile = {i for i, behaviour in (behaviours or {}).items() if behaviour.byzantine}
        self.state_now: Tensors = {"parameters": torch.full((self.task.d,), 5.0), "momentum": torch.zeros(self.task.d)}
        self.own = {i: self.state_now for i in self.peers if i not in self.hostile}
        self.earlier: dict[int, Tensors] = {}
        self.results: list[StepResult] = []

    def on_plateau(self) -> Cohort:
        """Begin at the minimum: all gradients are noise."""
        self.state_now["parameters"].zero_()
        return self

    def enter(self, identity: Identity, behaviour: Behaviour) -> None:
        def receive(tensors: Mapping[str, torch.Tensor]) -> None:
            assert newcomer.peer is not None
            if behaviour.byzantine:
                self.hostile.add(newcomer.peer)
            else:
                self.own[newcomer.peer] = {name: x.clone() for name, x in tensors.items()}

        newcomer = self.join(identity, behaviour, receive=receive)

    def advance(self, steps: int) -> Cohort:
        for _ in range(steps):
            self.earlier[self.honest[0].t] = self.state_now
            shared = {name: x for name, x in self.state_now.items() if name != "parameters"}
            result = self.step(self.state_now["parameters"], shared)
            self.state_now = self.applied(self.state_now, result.gradient, result.back_to)
            self.results.append(result)
            for peer in self.honest:
                assert peer.taus == self.honest[0].taus
                for name, x in self.state_now.items():
                    assert torch.equal(self.own[peer.id][name], x), f"{name} of peer {peer.id}, step {result.step}"
        return self

    def applied(self, state: Tensors, gradient: torch.Tensor, back_to: int | None) -> Tensors:
        if back_to is not None:
            return self.earlier[back_to]
        momentum = MOMENTUM * state["momentum"] + gradient
        return {"parameters": state["parameters"] - RATE * momentum, "momentum": momentum}

    def _agreed(self, honest: Mapping[int, Outcome | None]) -> Outcome:
        for i, outcome in honest.items():
            if outcome is not None:
                gradient = outcome.gradient(torch.empty(self.task.d))
                self.own[i] = self.applied(self.own[i], gradient, outcome.back_to)
        return super()._agreed(honest)

    @property
    def entries(self) -> list[Entry]:
        return self.honest[0].ledger.entries

    @property
    def healings(self) -> list[tuple[int, int]]:
        """(step, step gone back to or the step itself)."""
        return [(entry.step, entry.about_step) for entry in self.entries if entry.kind == HEALED]

    @property
    def removed(self) -> set[int]:
        return {peer for entry in self.entries for peer in entry.peers}

    @property
    def loss(self) -> float:
        return float(self.state_now["parameters"].square().sum() / 2)

    def found(self, step: int) -> dict[int, float]:
        """Earlier step -> the bound that an honest peer found for its state at the end of `step`."""
        before = [entry for entry in self.entries if entry.step < step]
        steps = (*candidates(self.config, before, step), step)
        seed = batch_seed(self.config.run_id, step, self.results[step].coin)
        values = [self.task.public_losses(self.earlier[s]["parameters"], seed) for s in steps]  # type: ignore[attr-defined]
        return dict(zip(steps, measured(Losses((b"",) * len(steps), torch.stack(values))).bounds, strict=False))


def check(cohort: Cohort, *, trade: bool = False) -> int:
    """The bounds that hold whatever attackers do; returns how many steps were lost."""
    for entry in cohort.entries:
        honest = set(entry.peers) - cohort.hostile
        assert not honest or (trade and entry.verdict == "eliminated" and len(entry.peers) == 2), entry
    graduated = {entry.accused: entry.step for entry in cohort.entries if entry.kind == GRADUATED}
    members = {peer for peer in cohort.removed if peer < PEERS or peer in graduated}
    lost, free = 0, 0
    for step, back_to in cohort.healings:
        first = step - 1
        while any(entry.step == first and entry.kind == HEALED and not entry.losses for entry in cohort.entries):
            first -= 1
        caused = [entry for entry in cohort.entries if first <= entry.step < step and members & set(entry.peers)]
        assert caused, f"nobody was removed before the healing in step {step}"
        if back_to == step:
            continue
        assert step - back_to <= window(cohort.config)
        assert back_to >= free, "no step is lost twice, but for those that newcomers alone have cost"
        assert cohort.found(step)[back_to] < 0, "only where the loss says so"
        lost += step + 1 - back_to
        if any(peer < PEERS for entry in caused for peer in entry.peers):
            free = step + 1
    assert lost <= (window(cohort.config) + 1) * len(members)
    return lost


def attackers(plans: Plans, **common: Any) -> dict[int, Behaviour]:
    collusion = Collusion(frozenset(plans), PEERS, 0)
    return {i: make_attack(name, collusion, **{**common, **options}) for i, (name, options) in plans.items()}


def alike(name: str, **options: Any) -> dict[int, Behaviour]:
    return attackers(dict.fromkeys(MEMBERS, (name, options)), start=START)


# Liars.

ACCEPTED = ("oldest", "present", "opposite", "huge", "digests", "silent")
MALFORMED = ("short", "long", "empty", "nan", "infinite")


def with_liars(what: str, start: int = 0, **settings: Any) -> Cohort:
    """One attacker that hits and goes, and two that lie about the states from step `start` on."""
    liar = ("healing_lies", {"what": what})
    return Cohort(attackers({1: ("hit_and_run", {"start": START}), 3: liar, 5: liar}, start=start), **settings)


@cache
def without_lies(validation: str) -> Cohort:
    return with_liars("silent", start=1000, validation=validation).advance(START + 6)


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
@pytest.mark.parametrize("what", [*ACCEPTED, *MALFORMED])
def test_no_lie_of_fewer_than_half_changes_the_choice(what: str, validation: str) -> None:
    truth, lied = without_lies(validation), with_liars(what, validation=validation).advance(START + 6)
    check(lied)
    first = next(entry for entry in truth.entries if entry.kind == HEALED)
    assert first.about_step < first.step, "there is something to lie about"
    assert next(entry for entry in lied.entries if entry.kind == HEALED) == first
    if what in ACCEPTED:
        assert lied.entries == truth.entries
        assert torch.equal(lied.state_now["parameters"], truth.state_now["parameters"])
    else:
        gone = [entry for entry in lied.entries if entry.kind == "malformed_heal"]
        assert [(entry.step, entry.peers) for entry in gone] == [(first.step, (3,)), (first.step, (5,))]


# Who triggers healing, when, and what it costs.


@pytest.mark.parametrize("leave", ["silent", "eliminate", "betrayed"])
def test_who_hits_and_goes_leaves_no_trace(leave: str) -> None:
    steps = START + 14
    cohort = Cohort(alike("hit_and_run", hits=3, leave=leave)).advance(steps)
    unhealed = Cohort(alike("hit_and_run", hits=3, leave=leave), heal="off").advance(steps)
    lost = check(cohort, trade=leave == "eliminate")
    honest = Cohort().advance(steps - lost)
    assert cohort.removed >= MEMBERS
    assert cohort.loss < 1.2 * honest.loss < 0.15 * unhealed.loss


@pytest.mark.parametrize(("window", "healed"), [(6, True), (2, False)])
def test_who_stays_away_after_its_hit_is_healed_if_the_window_is_longer(window: int, healed: bool) -> None:
    """It is gone three steps later."""
    hit = attackers({1: ("hit_and_run", {"start": START, "hits": 1, "leave": "absent"})})
    cohort = Cohort(hit, byzantine=1, heal=window).advance(START + 6)
    assert [(entry.kind, entry.step) for entry in cohort.entries if entry.peers] == [("gone", START + 3)]
    assert check(cohort) > 0
    assert (cohort.healings[0][1] <= START) == healed, "else the hit itself is older than all states"


@pytest.mark.parametrize("leave", ["silent", "eliminate"])
def test_a_sacrifice_on_a_plateau_costs_no_more_than_the_window(leave: str) -> None:
    """The gradients are all noise there, so that states differ, and none is better for long."""
    cohort = Cohort(alike("hit_and_run", hits=0, leave=leave))
    cohort.on_plateau()
    cohort.advance(START + 6)
    assert cohort.removed >= MEMBERS and check(cohort, trade=True) <= W + 1, "all go in one step: one healing"


def test_bans_one_after_the_other_are_each_healed() -> None:
    cohort = Cohort(alike("hit_and_run", when="in_turn", hits=1), byzantine=3).advance(START + 12)
    assert cohort.removed == MEMBERS
    check(cohort)
    assert len(cohort.healings) > 1


def test_bans_in_the_step_in_which_a_healing_is_decided() -> None:
    """Who falls out in that step has done nothing that is still there: the next step has nothing to choose among."""
    plans = {1: ("hit_and_run", {"start": START, "hits": 1}), 3: ("hit_and_run", {"start": START + 1, "hits": 1})}
    cohort = Cohort(attackers(plans)).advance(START + 6)
    step = START + 2
    assert [e.step for e in cohort.entries if e.peers] == [step - 1, step]
    assert [healed for healed, _ in cohort.healings] == [step] and check(cohort) > 0


def test_several_bans_in_one_step_are_healed_at_once() -> None:
    cohort = Cohort(alike("hit_and_run", hits=1)).advance(START + 4)
    assert {e.step for e in cohort.entries if e.peers} == {START + 1}
    assert [healed for healed, _ in cohort.healings] == [START + 2] and check(cohort) > 0


# Whoever is not there, or not yet.


class Away(Behaviour):
    """An honest peer that nobody hears in some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def active(self, step: int) -> bool:
        return step in self.steps

    def say(self, ctx: Any, phase: str, payload: Any, message: Any, sign: Any) -> Any:
        return None, {}

    def dispatch(self, ctx: Any, phase: str, packets: Any) -> Any:
        return {}


def test_who_is_away_goes_back_with_the_others() -> None:
    """`advance` compares its parameters with the others'."""
    hits = attackers({1: ("hit_and_run", {"start": START, "hits": 1})})
    cohort = Cohort({**hits, 6: Away(START + 2)}, byzantine=1).advance(START + 5)
    assert 6 not in cohort.removed and check(cohort) > 0


class Deaf(Cohort):
    """Peer 6 gets no aggregate of the step in which it is away."""

    def talk(self, step: int, letters: Any) -> Any:
        heard = super().talk(step, letters)
        phase = next(iter(letters.values())).phase
        if step != START + 2 or phase not in ("aggregate", "bring_up", "forward"):
            return heard
        return heard._replace(answers={**heard.answers, 6: {}})


def test_who_lacks_an_aggregate_of_a_step_that_is_undone_lacks_nothing() -> None:
    hits = attackers({1: ("hit_and_run", {"start": START, "hits": 1})})
    cohort = Deaf({**hits, 6: Away(START + 2)}, byzantine=1).advance(START + 5)
    assert 6 not in cohort.removed and check(cohort) > 0
    with pytest.raises(Incomplete):
        Deaf({6: Away(START + 2)}, byzantine=1).advance(START + 5)


def test_eliminations_do_not_keep_the_others_from_healing() -> None:
    """Two honest peers fewer in the step that decides: a majority of those who are there is enough."""
    leaver = ("hit_and_run", {"hits": 2, "leave": "eliminate"})
    cohort = Cohort(attackers({1: ("hit_and_run", {"hits": 1}), 3: leaver, 5: leaver}, start=START), peers=7)
    cohort.advance(START + 5)
    assert [e.kind for e in cohort.entries if e.step == START + 2] == ["withheld_aggregate"] * 2 + [HEALED]
    assert check(cohort, trade=True) > 0
    assert cohort.healings[0][1] < cohort.healings[0][0] == START + 2


class Forgetful(Cohort):
    """The peers in `forgot` have lost the earlier states."""

    def __init__(self, behaviours: Mapping[int, Behaviour], **settings: Any) -> None:
        super().__init__(behaviours, **settings)
        self.forgot: tuple[int, ...] = ()
        measure = self.past.measure
        self.past.measure = lambda asked: {i: x for i, x in measure(asked).items() if i not in self.forgot}


@pytest.mark.parametrize("what", ["oldest", "digests", "silent", "present"])
@pytest.mark.parametrize("forgot", [(), (0,), (0, 2), (0, 2, 4), (0, 2, 4, 6, 7)])
def test_who_has_lost_the_states_says_nothing_and_liars_gain_nothing(what: str, forgot: tuple[int, ...]) -> None:
    """`check` sees that one of those who know found the chosen state clearly better."""
    liar: tuple[str, dict[str, Any]] = ("healing_lies", {"what": what})
    plans: Plans = {1: ("hit_and_run", {"start": START, "hits": 1}), 3: liar, 5: liar}
    cohort = Forgetful(attackers(plans))
    cohort.forgot = forgot
    cohort.advance(START + 4)
    went_back = check(cohort) > 0
    if len(forgot) == 5 or what == "digests":
        assert went_back == (len(forgot) < 2)


@pytest.mark.parametrize("examples", [1, 2])
def test_a_batch_too_small_to_compare_on_has_nobody_removed(examples: int) -> None:
    values = torch.arange(2 * examples, dtype=torch.float64).view(2, examples)
    said = measured(Losses((bytes(32), bytes(32)), values))
    assert said.fits(2) and (examples > 1 or said.bounds[0] >= 0)


@pytest.mark.parametrize("stop", range(START, START + 5))
def test_resumed_in_the_middle_of_it_the_run_ends_in_the_same_bits(stop: int) -> None:
    def cohort() -> Cohort:
        return Cohort(alike("hit_and_run", hits=3), QuadraticTask(600), tau="auto").on_plateau()

    whole, first, second = cohort().advance(START + 6), cohort().advance(stop), cohort()
    state, tensors = first.state()
    second.restore(json.loads(json.dumps(state)), {name: x.clone() for name, x in tensors.items()}, life=None)
    second.state_now, second.own, second.earlier, second.results = (
        first.state_now,
        first.own,
        first.earlier,
        first.results,
    )
    second.advance(START + 6 - stop)
    assert second.entries == whole.entries and check(whole) > 0
    assert torch.equal(second.state_now["parameters"], whole.state_now["parameters"])


def test_the_radius_goes_back_at_newcomers_too() -> None:
    """Those on probation and new members: they have the radii of earlier steps from the state that they downloaded."""
    cohort = Cohort(alike("hit_and_run", hits=3), QuadraticTask(600), tau="auto", probation=2).on_plateau()
    for number, step in enumerate((0, START)):
        cohort.advance(step - len(cohort.results))
        cohort.enter(Identity.from_seed("newcomer", number), Behaviour())
    cohort.advance(START + 6 - len(cohort.results))
    assert check(cohort) > 0
    step, back_to = cohort.healings[0]
    assert cohort.results[step + 1].tau == cohort.results[back_to].tau != cohort.results[step].tau
    assert set(cohort.own) >= {PEERS, PEERS + 1}, "one of them is on probation, and goes back"


# Sybils.


def with_sybil(attack: str, **options: Any) -> Cohort:
    """A newcomer that is admitted at once, and attacks later."""
    cohort = Cohort(probation=2, byzantine=1)
    cohort.enter(Identity.from_seed("sybil"), make_attack(attack, Collusion(frozenset(), PEERS, 0), **options))
    return cohort


def test_a_sybil_that_is_banned_on_purpose_reaches_back_to_its_membership_alone() -> None:
    cohort = with_sybil("hit_and_run", start=6, hits=0)
    cohort.on_plateau()
    cohort.advance(9)
    graduated = next(entry.step for entry in cohort.entries if entry.kind == GRADUATED)
    assert cohort.healings and check(cohort) <= cohort.healings[0][0] + 1 - (graduated + 1)
    looked_at = {int(step) for entry in cohort.entries for step in entry.losses}
    assert min(looked_at) == graduated + 1


def test_a_sybil_that_goes_does_not_have_the_harm_of_its_fellows_kept() -> None:
    """It reaches back to its membership, in the middle of the harm. The fellow's own removal reaches back further."""
    fellow = attackers({1: ("hit_and_run", {"start": 4, "hits": 4})})
    cohort = Cohort(fellow, byzantine=2, probation=2, heal=8, run_id="lock 2")
    sybil = make_attack("hit_and_run", Collusion(frozenset(), PEERS, 0), hits=0)
    cohort.enter(Identity.from_seed("sybil"), sybil)
    cohort.advance(14)
    assert [entry.peers for entry in cohort.entries if entry.peers] == [(PEERS,), (1,)]
    [(_, first), (_, second)] = cohort.healings
    assert second < first and second <= 4 and check(cohort)
    assert cohort.loss < 1.3 * Cohort(byzantine=0).advance(14 - check(cohort)).loss


def test_a_sybil_that_goes_on_probation_triggers_nothing() -> None:
    cohort = with_sybil("silent", phase="commit").advance(8)
    assert cohort.removed == {PEERS} and not cohort.healings and check(cohort) == 0


@pytest.mark.parametrize("what", ["silent", "digests", "present"])
def test_a_choice_for_which_too_few_have_the_states_is_made_up_for(what: str) -> None:
    """As soon as they have them, even if nobody else is removed: attackers cannot wait for such a moment."""
    liar: tuple[str, dict[str, Any]] = ("healing_lies", {"what": what})
    plans: Plans = {1: ("hit_and_run", {"start": START, "hits": 1}), 3: liar, 5: liar}
    cohort = Forgetful(attackers(plans), heal=6)
    cohort.forgot = (0, 2, 4)
    cohort.advance(START + 4)
    assert cohort.healings == [(START + 2, START + 2), (START + 3, START + 3)]
    cohort.forgot = ()
    cohort.advance(4)
    [*_, (step, back_to)] = cohort.healings
    assert step == START + 4 and back_to <= START and check(cohort) == step + 1 - back_to


# The coin, with which the batch is drawn.


def test_who_aborts_the_coin_of_a_choice_brings_the_next_choice_about() -> None:
    """So nobody can have a batch drawn again until it is one that hides its harm."""
    plans: Plans = {
        1: ("hit_and_run", {"start": START, "hits": 0}),
        3: ("silent", {"start": START + 1, "phase": "coin_reveal"}),
    }
    cohort = Cohort(attackers(plans)).advance(START + 4)
    assert [(entry.step, entry.peers) for entry in cohort.entries if entry.peers] == [(START, (1,)), (START + 1, (3,))]
    assert cohort.healings == [(START + 1, START + 1), (START + 2, START + 2)] and check(cohort) == 0


# What healing does not see: the limits that docs/threat-model.md names.


def test_what_the_public_loss_does_not_show_stays() -> None:
    """A back door: parameters that hardly matter for the public batch."""

    class Indoors(QuadraticTask):
        def public_losses(self, params: torch.Tensor, seed: bytes) -> torch.Tensor:
            return super().public_losses(torch.cat((params[: D // 2], torch.zeros(D - D // 2))), seed)

    class BackDoor(HitAndRun):
        def gradient(self, ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            changed = super().gradient(ctx, gradient)
            return torch.cat((gradient[: D // 2], changed[D // 2 :]))

    collusion = Collusion(MEMBERS, PEERS, 0)
    behaviours = {i: BackDoor(collusion=collusion, start=START) for i in MEMBERS}
    cohort = Cohort(behaviours, Indoors(D)).advance(START + 6)
    assert cohort.healings and check(cohort) == 0
    shown, hidden = cohort.state_now["parameters"].square().split(D // 2)
    assert float(hidden.sum()) > 10 * float(shown.sum())


@pytest.mark.parametrize(("hurt", "seen"), [(8, False), (9, True)])
def test_harm_to_fewer_than_nine_of_512_examples_is_not_seen_however_large(hurt: int, seen: bool) -> None:
    """All of the harm lies in so few examples that it might be chance: a rare class can be wiped out."""
    values = torch.zeros(2, 512, dtype=torch.float64)
    values[1, :hurt] = 1000.0
    assert (measured(Losses((bytes(32), bytes(32)), values)).bounds[0] < 0) == seen


class WithAdam(Cohort):
    """The optimizer divides by the root of a mean over a thousand squared gradients."""

    def applied(self, state: Tensors, gradient: torch.Tensor, back_to: int | None) -> Tensors:
        if back_to is not None:
            return self.earlier[back_to]
        squares = state["momentum"] * 0.999 + 0.001 * gradient.square()
        return {"parameters": state["parameters"] - RATE / 10 * gradient / (squares / 0.02).sqrt(), "momentum": squares}


def test_harm_to_the_optimizer_alone_is_not_seen() -> None:
    """One huge gradient makes all later steps tiny: no earlier state is better, and there is hardly any progress."""

    class Poison(HitAndRun):
        def gradient(self, ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            signs = torch.ones(D)
            signs[::2] = -1
            return signs * super().gradient(ctx, gradient)

    def run(start: int) -> WithAdam:
        poison = Poison(collusion=Collusion(frozenset({1}), PEERS, 0), start=start, hits=1)
        cohort = WithAdam({1: poison}, byzantine=1, tau=1e6)
        cohort.state_now["momentum"].fill_(0.5)
        cohort.advance(START + 20)
        return cohort

    attacked, clean = run(START), run(1000)
    assert attacked.healings and check(attacked) == 0
    progress = {
        cohort: float(cohort.earlier[START + 1]["parameters"].norm() - cohort.state_now["parameters"].norm())
        for cohort in (attacked, clean)
    }
    assert progress[attacked] < 0.1 * progress[clean]
