"""A swarm that goes back to an earlier state: as the simulator does, whoever of its peers lacks states or is slow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from btard.attacks.registry import make_attack
from btard.audit.__main__ import main as audit
from btard.audit.report import MEASURED
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.drivers.trail import State, Trail
from btard.harness.run_folder import read_metrics
from btard.harness.sections import ProtocolSection
from btard.harness.typed_yaml import ConfigError
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Broadcast, Idle, Measure
from btard.protocol.hashing import tensor_digest
from btard.protocol.heal import HEALED, heal
from btard.protocol.identity import Identity
from btard.protocol.ledger import Entry
from btard.protocol.messages import NOBODY
from btard.swarm.clock import StepClock
from btard.swarm.config import AttackConfig, NetworkConfig
from btard.swarm.deadlines import Deadlines
from btard.swarm.driver import OutOfStep
from btard.swarm.task import TaskSource, load_task
from btard.swarm.trainer import Trainer
from btard.task import QuadraticTask
from tests.albert.trainers import Trainers, same
from tests.swarm.cohort import QUICK, Cohort, Fault, Killed, Member, moved
from tests.swarm.quadratic import Config, Descent
from tests.swarm.quadratic import Quadratic as Task

HARM: dict[str, Any] = {"peers": 5, "byzantine": 1, "attack": "sign_flip", "heal": 8, "tau": math.inf}
"""Nothing clips the attacker: it does harm from step 1 on, is removed in step 3, and step 4 goes back to step 1."""
NO_HARM = {**HARM, "tau": 1.0}
HEALING, BACK_TO = 4, 1


def healings(entries: list[Entry]) -> list[tuple[int, int]]:
    return [(entry.step, entry.about_step) for entry in entries if entry.kind == HEALED]


def test_a_swarm_goes_back_where_the_simulator_does_and_gives_time_to_measure() -> None:
    with Cohort(**HARM) as cohort:
        honest = [member.driver.peer.id for member in cohort.honest]
        heard: dict[int, set[int]] = {}
        waits: dict[int, float] = dict.fromkeys(honest, 0.0)

        def begin(member: Member) -> None:
            waits[member.driver.peer.id] -= member.driver._clock.longest

        def end(member: Member) -> None:
            waits[member.driver.peer.id] += member.driver._clock.longest
            heard[member.driver.peer.id] = set(member.driver.peer.current.heard[HEALED])

        at = (("heal", begin), ("heal/compare", end))
        cohort.faults = tuple(Fault(peer, HEALING, phase, look) for peer in honest for phase, look in at)
        cohort.run(6)
        params, simulated = cohort.simulate(6)
        for member in cohort.honest:
            assert member.end is None and torch.equal(member.params, params)
            assert member.driver.peer.ledger.head == simulated.honest[0].ledger.head
        assert all(heard[peer] >= set(honest) for peer in honest)
        assert len({round(wait, 6) for wait in waits.values()}) == 1
        assert min(waits.values()) > 5 * QUICK.compute, "four earlier states and the present one"
        assert healings(cohort.honest[0].driver.peer.ledger.entries) == [(HEALING, BACK_TO)]
        assert cohort.removed().keys() == cohort.attackers


def forget(member: Member) -> None:
    """As if it had been started again."""
    member.driver.past.trail.states.clear()


def test_who_lacks_the_state_needs_that_of_the_others() -> None:
    with Cohort(**HARM, faults=(Fault(3, HEALING, "heal/measure", forget),)) as cohort:
        cohort.run(HEALING + 1)
        params, simulated = cohort.simulate(HEALING + 1)
        others = [member for member in cohort.honest if member.driver.peer.id != 3]
        end = cohort.members[3].end
        assert isinstance(end, OutOfStep) and "back to the state of step 1, which is lost here" in str(end)
        assert all(member.end is None and torch.equal(member.params, params) for member in others)
        assert {m.driver.peer.ledger.head for m in cohort.honest} == {simulated.honest[0].ledger.head}
        assert cohort.removed().keys() == cohort.attackers, "who has no say is not silent"


def test_who_lacks_states_goes_on_if_nobody_goes_back() -> None:
    with Cohort(**NO_HARM, faults=(Fault(3, HEALING, "heal/measure", forget),)) as cohort:
        cohort.run(HEALING + 2)
        params, simulated = cohort.simulate(HEALING + 2)
        assert all(member.end is None and torch.equal(member.params, params) for member in cohort.honest)
        assert {m.driver.peer.ledger.head for m in cohort.honest} == {simulated.honest[0].ledger.head}
        assert healings(cohort.members[3].driver.peer.ledger.entries) == [(HEALING, HEALING)]


def test_a_state_of_another_history_is_not_gone_back_to() -> None:
    trail = made_trail()
    mine = trail.states[1].digest().hex()

    def result(back_to: int | None, agreed: str) -> StepResult:
        entry = Entry(2, HEALED, "public", NOBODY, (), (), 2 if back_to is None else back_to, evidence=agreed)
        return StepResult(2, torch.zeros(1), b"", (entry,), (), (), 1.0, {}, back_to=back_to)

    assert torch.equal(trail.completed(result(1, mine)).state["parameters"], torch.ones(3))
    other = "ab" * 32
    assert trail.completed(result(None, other)).state == {}
    given = {"parameters": torch.zeros(3)}
    assert trail.completed(result(1, other), lambda digest: given if digest.hex() == other else None).state == given
    for back_to, agreed in ((1, other), (7, mine)):
        with pytest.raises(LookupError, match="which is lost here"):
            trail.completed(result(back_to, agreed))


def made_trail() -> Trail:
    """With the states of steps 0 to 2."""
    trail = Trail(ProtocolConfig(3, 1, "trail", heal=8), QuadraticTask(3))
    for step in range(3):
        trail.record(step, [], State({"parameters": torch.full((3,), float(step))}, {}))
    return trail


def test_the_wait_has_room_for_each_state_whether_one_measures_or_not() -> None:
    removal = Entry(3, "silent", "public", 4, (), (4,), 3)
    ledger = SimpleNamespace(entries=[removal])
    seat = SimpleNamespace(config=ProtocolConfig(5, 1, "waits", heal=8), ledger=ledger, id=2)
    asked: list[Any] = [
        next(heal(seat, SimpleNamespace(step=4, coin=b"", members=members)))  # type: ignore[arg-type]
        for members in ((0, 1, 2), (0, 1))
    ]
    assert [type(effect) for effect in asked] == [Measure, Idle] and {effect.work for effect in asked} == {5}
    deadlines = Deadlines(compute=100.0, phase=3.0, message=1.0)
    said = Broadcast(HEALED, None, {}, 100, 0)
    clock, other = (StepClock(deadlines, lambda: False) for _ in range(2))
    clock.start(Measure.phase, asked[0].work)
    other.start("compute")
    assert (clock.wait(said), other.wait(said)) == (3 + 1 + 5 * 100, 3 + 1)
    assert clock.wait(said) == 3 + 2 + 5 * 100


def test_nothing_more_is_measured_once_the_others_have_gone_on() -> None:
    trail = made_trail()
    asked, answers = Measure((0, 1, 2), b"seed"), iter([False, True])
    assert trail.measure(asked) is not None
    assert trail.measure(asked, lambda: next(answers)) is None and not list(answers)


# Whole trainers, with their optimizers, folders and ways back.

SOURCE = load_task("tests.swarm.quadratic:make")


def settings(**changes: Any) -> Config:
    chosen: dict[str, Any] = {
        "run_id": "healing",
        "peers": 4,
        "byzantine": 1,
        "steps": 6,
        "threads": 1,
        "checkpoint_every": 2,
        "peer": 0,
        "protocol": ProtocolSection(heal=8, tau=math.inf, max_absences=50),
        "attack": AttackConfig(name="sign_flip", start=1, peers="2"),
        "deadlines": Deadlines(compute=20, phase=4, message=0.2, uplink=1, give_up=0.5, gather=30),
    }
    return Config(**{**chosen, **changes})


def simulate(config: Config) -> tuple[torch.Tensor, list[Entry], str]:
    """Parameters, ledger and its head at the end of the same run in the simulator."""
    collusion = Collusion(config.attackers(), config.peers, config.seed)
    attack = make_attack("sign_flip", collusion, start=config.attack.start)
    driver = LocalDriver(
        config.protocol_config(),
        Task(config.d, config.noise),
        behaviours=dict.fromkeys(config.attackers(), attack),
        collusion=collusion,
        mode="per_peer",
    )
    params = torch.ones(config.d)
    for _ in range(config.steps):
        params = moved(params, driver.step(params))
    ledger = driver.honest[0].ledger
    return params, ledger.entries, ledger.head.hex()


@pytest.fixture
def swarm(tmp_path: Path) -> Iterator[Callable[..., Trainers]]:
    made: list[Trainers] = []

    def make(config: Config) -> Trainers:
        made.append(Trainers(config, tmp_path, source=SOURCE))
        return made[-1]

    yield make
    for trainers in made:
        trainers.close()


def of_honest(trainers: Trainers) -> dict[int, Any]:
    return {number: end for number, end in trainers.ends.items() if number not in trainers.config.attackers()}


def auditors_task(folder: Path) -> Task:
    """What an auditor computes with, whatever the folder."""
    return Task(settings().d, settings().noise)


def test_a_swarm_that_was_killed_remembers_the_states(
    swarm: Callable[..., Trainers], capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings()
    params, entries, head = simulate(config)
    [(step, back_to)] = healings(entries)
    assert (step, back_to) == (3, 1)
    trainers = swarm(config)
    for number in trainers.numbers:
        trainers.make(number)
        trainers.kill_at(number, step, "heal/measure")  # their checkpoints are of the step before
    for number in trainers.numbers:
        trainers.start(number)
    trainers.wait()
    assert set(of_honest(trainers).values()) == {"killed"}
    again = swarm(config)
    again.run()
    ends = of_honest(again)
    assert {(end["digest"], end["ledger"]) for end in ends.values()} == {
        (tensor_digest(params, "parameters").hex(), head)
    }
    for number, end in ends.items():
        assert end["went_back"] == [{"step": step, "back_to": back_to}] and [ban["peer"] for ban in end["bans"]] == [2]
        rows = {row["step"]: row.get("back_to") for row in read_metrics(again.out / f"peer-{number}")}
        assert rows == dict.fromkeys(range(config.steps)) | {step: back_to}
        assert any(line.startswith(f"step {step}: back to step {back_to}, loss ") for line in again.lines[number])
    assert any("goes on from its checkpoint" in line for line in again.lines[0])
    assert audit([str(again.out / "peer-0"), "--task", "tests.swarm.test_heal:auditors_task"]) == 0
    assert f"step {step}: back to step {back_to}" in (said := capsys.readouterr().out) and MEASURED in said


class Ascent(Descent):
    """Every step makes it worse, so that all earlier states are better."""

    def lr(self, step: int) -> float:
        """Uphill."""
        return -0.1


def test_who_is_new_or_was_started_again_comes_back_with_the_state_of_the_others(tmp_path: Path) -> None:
    """Peer 3 dies in a step while a newcomer is on probation; peer 2 has no states when the others measure theirs."""
    protocol = ProtocolSection(heal=8, max_absences=50, probation=2)
    config = settings(steps=40, protocol=protocol, attack=AttackConfig())
    source = TaskSource("ascent", lambda config: (SOURCE.make(config)[0], Ascent(config.d)), Config)
    trainers = Trainers(config, tmp_path, source=source)
    try:
        for number in trainers.numbers:
            trainers.make(number)
        trainers.expect(4)
        dying, forgetful = trainers.trainers[3], trainers.trainers[2]

        def die(phase: str) -> None:
            if phase == "report" and dying.peer.probation:
                dying.node.p2p._child.kill()
                raise Killed

        def forget_all(phase: str) -> None:
            if phase == "heal/measure":
                forgetful.past.trail.states.clear()

        dying._watch, forgetful._watch = die, forget_all  # type: ignore[method-assign]
        founders = tmp_path / "founders.txt"
        keys = [Identity.from_seed(config.run_id, number).public_key.hex() for number in range(4)]
        founders.write_text("\n".join(keys))
        known = trainers.trainers[0].node.addresses[0]
        trainers.make(4, peer=None, network=NetworkConfig(initial_peers=known, founders=str(founders)))
        for number in range(5):
            trainers.start(number)
        ends = trainers.wait()
        assert ends.pop(3) == "killed"
        assert same(ends, ("digest", "ledger", "went_back")) and ends[0]["active"] == [0, 1, 2, 4], trainers.lines
        [healing] = ends[0]["went_back"]
        assert ends[0]["bans"] == [{"peer": 3, "step": healing["step"] - 1, "kind": "silent", "accusers": []}]
        assert healing["back_to"] == max(0, healing["step"] - 8)
        for number in (2, 4):
            assert not any("lost here" in line for line in trainers.lines[number]), "the others give it at once"
    finally:
        trainers.close()


def test_a_task_that_cannot_compare_states_is_refused_at_the_start(tmp_path: Path) -> None:
    class Bare(Task):
        public_losses = None  # type: ignore[assignment]

    source = TaskSource("bare", lambda config: (Bare(100), SOURCE.make(config)[1]), Config)
    with pytest.raises(ConfigError, match=r"^protocol\.heal is 8, but Bare has no public_losses\(params, seed\)"):
        Trainer(settings(), tmp_path, source)
