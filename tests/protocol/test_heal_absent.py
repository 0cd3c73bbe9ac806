"""Healing among peers that are away, have lost the states, resume or come later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from btard.audit import audit
from btard.audit.recorder import Recorder
from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour
from btard.protocol.commit import Incomplete
from btard.protocol.config import ProtocolConfig
from btard.protocol.heal import HEALED
from btard.protocol.identity import Identity
from btard.protocol.ledger import Ledger
from btard.task import QuadraticTask
from tests.protocol.healing import PEERS, START, Cohort, D, Forgetful, Plans, alike, attackers, check
from tests.protocol.promises import Away


def away(step: int) -> Away:
    return Away(lambda ctx: ctx.step == step)


def test_who_is_away_goes_back_with_the_others() -> None:
    """`advance` compares its parameters with the others'."""
    hits = attackers({1: ("hit_and_run", {"start": START, "hits": 1})})
    cohort = Cohort({**hits, 6: away(START + 2)}, byzantine=1).advance(START + 5)
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
    cohort = Deaf({**hits, 6: away(START + 2)}, byzantine=1).advance(START + 5)
    assert 6 not in cohort.removed and check(cohort) > 0
    with pytest.raises(Incomplete):
        Deaf({6: away(START + 2)}, byzantine=1).advance(START + 5)


def test_eliminations_do_not_keep_the_others_from_healing() -> None:
    """Two honest peers fewer in the step that decides: a majority of those who are there is enough."""
    leaver = ("hit_and_run", {"hits": 2, "leave": "eliminate"})
    cohort = Cohort(attackers({1: ("hit_and_run", {"hits": 1}), 3: leaver, 5: leaver}, start=START), peers=7)
    cohort.advance(START + 5)
    assert [e.kind for e in cohort.entries if e.step == START + 2] == ["withheld_aggregate"] * 2 + [HEALED]
    assert check(cohort, trade=True) > 0
    assert cohort.healings[0][1] < cohort.healings[0][0] == START + 2


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


@pytest.mark.parametrize("forgot", [(), (0, 2)])
def test_an_audit_accepts_what_members_without_the_states_had_to_leave_to_others(
    forgot: tuple[int, ...], tmp_path: Path
) -> None:
    """Two liars vote for the oldest state alone. With two honest peers that lack it, no other has a majority."""
    plans: Plans = {1: ("hit_and_run", {"start": START, "hits": 1})}
    plans = {**plans, **{i: ("healing_lies", {"what": "oldest"}) for i in (3, 5)}}
    cohort = Forgetful(attackers(plans), heal=8)
    cohort.recorder, cohort.forgot = Recorder(tmp_path, cohort.config), forgot
    cohort.advance(START + 4)
    ledger = Ledger()
    (tmp_path / "ledger.jsonl").write_text("".join(ledger.append(entry) + "\n" for entry in cohort.entries))
    cohort.attest(cohort.state_now["parameters"])
    report = audit(tmp_path, QuadraticTask(D))
    [healing] = [finding.entry for finding in report.findings if finding.entry.kind == HEALED]
    assert (healing.about_step == 0) == bool(forgot)
    assert any("4 of 7 members" in note or "3 of 7 members" in note for note in report.notes) == bool(forgot)


class Cliff(QuadraticTask):
    """||x - 1||^2 / 2, where x_0 is below 1.25: beyond it nothing is finite."""

    def gradients(self, params: torch.Tensor, requests: Any, out: torch.Tensor, **more: Any) -> None:
        super().gradients(params - 1, requests, out, **more)
        if float(params[0]) >= 1.25:
            out.fill_(float("nan"))

    def public_losses(self, params: torch.Tensor, seed: bytes) -> torch.Tensor:
        losses = super().public_losses(params - 1, seed)
        return losses if float(params[0]) < 1.25 else losses * float("nan")


class Pushes(Behaviour):
    byzantine = True

    def active(self, step: int) -> bool:
        return step >= 3

    def gradient(self, ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        pushed = gradient.nan_to_num()
        pushed[0] = -1e3
        return pushed


@pytest.mark.parametrize("name", ["cliff 4", "cliff 11", "cliff 15"])
def test_a_step_in_which_nobody_has_a_gradient_goes_back_if_it_can(name: str, tmp_path: Path) -> None:
    """The liar pushed all over the cliff, and was convicted there: in the next step nobody hostile works either."""
    config = ProtocolConfig(peers=5, byzantine=1, validators=1, run_id=name, heal="auto")
    task, ledger, lines = Cliff(61, noise=0.4), Ledger(), list[str]()
    driver = LocalDriver(config, task, behaviours={4: Pushes()}, recorder=Recorder(tmp_path, config))
    x, workers = torch.ones(61), list[int]()
    for _ in range(12):
        result = driver.step(x)
        lines += [ledger.append(entry) + "\n" for entry in result.removed]
        workers.append(len(driver.honest[0].current.workers))
        x = x - 0.3 * result.gradient if result.back_to is None else result.state["parameters"].clone()
    assert [entry.kind for entry in driver.honest[0].ledger.entries] == ["wrong_gradient", HEALED]
    assert workers.count(0) == 1 and workers[-1] > 0 and float(x[0]) < 1.25
    (tmp_path / "ledger.jsonl").write_text("".join(lines))
    driver.attest(x)
    assert len(audit(tmp_path, task).findings) == 2
