"""Runs a case and says which invariant breaks first, if any."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from btard.audit import audit
from btard.audit.ledger import AgreedState, read_ledger
from btard.audit.recorder import Recorder
from btard.audit.report import AuditError
from btard.drivers.letters import Letters
from btard.drivers.local import LocalDriver
from btard.drivers.loop import Heard, StepResult
from btard.protocol.commit import CutOff, NoGradient
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity, Roster
from btard.protocol.ledger import Ledger
from btard.protocol.peer import Peer
from btard.protocol.snapshot import load_peer, load_public, public_state
from btard.task import QuadraticTask
from scripts.hunt import coverage
from scripts.hunt.cases import Case, Finding
from scripts.hunt.environments import config_of, tasks_of, weather_of
from scripts.hunt.invariants import Broken, allowed_end, check_audit, check_finite, check_step
from scripts.hunt.programs import Honest, Programmed
from scripts.hunt.room import Room
from scripts.hunt.twins import Twinned, Twins
from scripts.hunt.watch import Endless, Watch, most_effects
from tests.audit.forgery import keys
from tests.audit.mutants import Run, judged

MUTANTS = 3
"""Number of forged copies of a recorded run."""
RATE = 0.1
"""Learning rate of the plain gradient descent that applies the agreed gradients."""


@dataclass
class Played:
    """The outcome of a case."""

    finding: Finding | None = None
    steps: int = 0
    branches: frozenset[int] = frozenset()
    kinds: tuple[str, ...] = ()
    """Kinds of the ledger's entries, in order."""
    crashes: list[str] = field(default_factory=list)
    stopped: bool = False
    """Whether too few peers were there to continue."""


class _Cohort(LocalDriver):
    """Colluders act last in every phase, and all peers are watched.

    An honest peer that falls silent in a step can end it with another view. As in a swarm, it takes the state of the
    members afterwards, if it is still in the run.
    """

    room: Room
    watch: Watch

    def step(
        self,
        params: torch.Tensor,
        shared: Mapping[str, torch.Tensor] | None = None,
        local: Mapping[str, torch.Tensor] | None = None,
    ) -> StepResult:
        now = self.honest[0].t
        leaving = {
            i: peer.behaviour
            for i, peer in self.peers.items()
            if isinstance(peer.behaviour, Honest) and now in peer.behaviour.drops
        }
        for behaviour in leaving.values():
            behaviour.byzantine = True  # the driver shall not compare it with the others
        before = self.peers
        try:
            result = super().step(params, shared, local)
        finally:
            for behaviour in leaving.values():
                behaviour.byzantine = False
        witness = next(peer for i, peer in self.peers.items() if i not in leaving and i not in self.room.members)
        for i, behaviour in leaving.items():
            if i in witness.active and behaviour.missed(now):
                peer = before[i]
                back = Peer(i, peer.identity, witness.roster, self.config, peer.d, peer.behaviour, self.commitments)
                back.memory, back.requests = witness.memory, dict(peer.requests)
                load_public(back, public_state(witness))
                self.peers[i] = back
        self.peers = {i: p.survivor if isinstance(p, Twins) else p for i, p in self.peers.items()}
        self.arrange()
        return result

    def talk(self, step: int, letters: Mapping[int, Letters]) -> Heard:
        """In addition, check how much the present honest peers say and read."""
        there = [i for i in letters if i not in self.room.members and not self.peers[i].behaviour.byzantine]
        for sender in there:
            said = letters[sender]
            for recipient in there:
                letter = said.special.get(recipient, said.common)
                if recipient != sender and letter is not None and said.size(letter) > letters[recipient].limit:
                    self.watch.unread = (
                        f"{said.phase} from {sender} to {recipient}: {said.size(letter)} bytes, "
                        f"limit {letters[recipient].limit}"
                    )
        heard = super().talk(step, letters)
        self.watch.traffic(there, letters, heard.answers)
        return heard

    def arrange(self) -> None:
        hostile = {i for i, peer in self.peers.items() if isinstance(peer.behaviour, Programmed | Twinned)}
        self.peers = {i: self.peers[i] for i in sorted(self.peers, key=lambda i: (i in hostile, i))}
        self.room.peers = dict(self.peers)
        self.room.members |= hostile
        for peer in self.peers.values():
            self.watch.over(peer)

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, life: bytes | None) -> None:
        """Both twins begin the new life with the same state."""
        super().restore(state, tensors, life=life)
        for i, peer in self.peers.items():
            if isinstance(peer, Twins):
                refs = state["peers"][str(i)]
                load_peer(peer.other, state["shared"], {name: tensors[ref] for name, ref in refs.items()})
                if life is not None:
                    peer.other.begin_life(life)
        self.arrange()

    def _bring_in(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super()._bring_in(tensors)
        self.arrange()


@torch.no_grad()
def play(case: Case) -> Played:
    """The run of `case` until its end, or until an invariant breaks."""
    coverage.clear()
    played, room = Played(), Room()
    if case.environment.recorded:
        with tempfile.TemporaryDirectory(prefix="hunt-") as folder:
            _run(case, played, room, Path(folder) / "run")
    else:
        _run(case, played, room, None)
    played.branches, played.crashes = coverage.taken(), room.crashes
    return played


def _run(case: Case, played: Played, room: Room, folder: Path | None) -> None:
    env, at = case.environment, _Position()
    try:
        _go(case, played, room, folder, at)
    except Broken as broken:
        played.finding = Finding(broken.invariant, str(broken), at.step, case)
    except Endless as error:
        played.finding = Finding("rounds", str(error), at.step, case)
    except AuditError as error:
        played.finding = Finding("audit", str(error), at.step, case)
    except (CutOff, NoGradient) as error:
        played.stopped = True
        if not allowed_end(env, error, at.driver.peers if at.driver else {}, room):
            played.finding = Finding(type(error).__name__, str(error), at.step, case)
    except Exception as error:  # whatever an honest peer runs into is what we look for
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = "" if trace is None else f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
        played.finding = Finding(f"{type(error).__name__}{where}", str(error)[:500], at.step, case)
    if at.driver is not None:
        ledgers = [peer.ledger for peer in at.driver.peers.values() if not peer.behaviour.byzantine]
        played.kinds = tuple(entry.kind for entry in ledgers[0].entries) if ledgers else ()


@dataclass
class _Position:
    step: int = 0
    driver: _Cohort | None = None


def _go(case: Case, played: Played, room: Room, folder: Path | None, at: _Position) -> None:
    env = case.environment
    config = config_of(env, case.seed)
    driver = at.driver = _cohort(case, config, room, folder)
    beside: LocalDriver | None = None
    joined: dict[int, Identity] = {}
    params, saved = torch.ones(env.d) * env.scale, None
    past: dict[int, torch.Tensor] = {}
    other_params = torch.ones(8)
    step = 0
    while step < case.steps:
        at.step = step
        if env.life is not None and room.life == 0 and step == env.life.saved:
            state, tensors = driver.state()
            saved = json.dumps(state), {name: x.clone() for name, x in tensors.items()}, params.clone()
        if env.life is not None and room.life == 0 and step == env.life.lost and saved is not None:
            room.life, room.spent = 1, set()
            driver = at.driver = _cohort(case, config, room, folder)
            for number in joined:
                _join(driver, case, room, number, joined)
            driver.restore(json.loads(saved[0]), {name: x.clone() for name, x in saved[1].items()}, life=b"second")
            params, step = saved[2], env.life.saved
            continue
        for number, newcomer in enumerate(env.newcomers):
            if newcomer.step == step:
                _join(driver, case, room, number, joined)
        if env.beside and step == 1:
            beside = _beside(case.seed)
        if beside is not None:
            other_params = other_params - RATE * beside.step(other_params).gradient
        driver.watch.begin()
        past[step] = params
        result = driver.step(params)
        check_step(env, driver, result, room, driver.watch, past)
        params = params - RATE * result.gradient if result.back_to is None else past[result.back_to]
        check_finite(params)
        played.steps += 1
        step += 1
    if folder is not None:
        _audit(case, driver, params, folder)


def _cohort(case: Case, config: ProtocolConfig, room: Room, folder: Path | None) -> _Cohort:
    env = case.environment
    room.members |= set(env.members)
    task, tasks = tasks_of(env)
    count = max(1, len(env.members) + sum(newcomer.hostile for newcomer in env.newcomers))
    behaviours: dict[int, Any] = {}
    for peer in range(env.peers):
        if peer in env.members:
            behaviours[peer] = Programmed(room, case.program, env.members.index(peer), count)
        else:
            away = frozenset(step for who, step in env.away if who == peer)
            behaviours[peer] = Honest(room, away, {step: phase for who, step, phase in env.drops if who == peer})
    driver = _Cohort(
        config,
        task,
        behaviours=behaviours,
        links=weather_of(env, case.seed),
        recorder=None if folder is None else Recorder(folder, config),
        tasks=tasks,
        commitments=env.commitments,
        repeatable=case.steps if env.life is not None else 0,
    )
    driver.room, driver.watch = (
        room,
        # One toss more than there are Byzantine peers, and honest ones that drop out.
        Watch(room, most_effects(env.peers + len(env.newcomers), env.byzantine + 1 + len(env.drops), config.rounds)),
    )
    for plan in reversed(case.program.twins if env.members else ()):  # of two for one peer the first counts
        peer = env.members[plan.who % len(env.members)]
        driver.peers[peer] = Twins.of(driver.peers[peer], plan, room, loyal=case.program.loyal)
    driver.arrange()
    return driver


def _join(driver: _Cohort, case: Case, room: Room, number: int, joined: dict[int, Identity]) -> None:
    env = case.environment
    joined[number] = Identity.from_seed("hunt newcomer", case.seed, number)
    hostile = [i for i, newcomer in enumerate(env.newcomers) if newcomer.hostile]
    count = len(env.members) + len(hostile)
    behaviour: Any = Honest(room)
    if number in hostile:
        behaviour = Programmed(room, case.program, len(env.members) + hostile.index(number), count)
    driver.join(joined[number], behaviour)


def _beside(seed: int) -> LocalDriver:
    """A cohort of honest peers with other settings in the same process."""
    config = ProtocolConfig(peers=4, byzantine=1, run_id=f"beside {seed}", tau=math.inf)
    return LocalDriver(config, QuadraticTask(8), commitments="ideal")


def _audit(case: Case, driver: _Cohort, params: torch.Tensor, folder: Path) -> None:
    """Errors: AuditError or Broken if an auditor arrives at another ledger, or believes what colluders turn it into."""
    ledger = Ledger()
    lines = [ledger.append(entry) + "\n" for entry in driver.honest[0].ledger.entries]
    (folder / "ledger.jsonl").write_text("".join(lines))
    driver.attest(params)
    witness = driver.honest[0]
    founders = Roster(witness.roster.keys[: case.environment.peers])
    agreed = AgreedState(driver.config, founders, read_ledger(folder / "ledger.jsonl"))
    concerned = {*(entry.step for entry in witness.ledger.entries), witness.t}
    if not all(agreed.enough(set(agreed.active(step)), step) for step in concerned):
        return  # so few are left that liars could have signed all of it: an audit refuses, as documented
    report = audit(folder, tasks_of(case.environment)[0])
    check_audit(driver.honest[0].ledger.entries, [finding.entry for finding in report.findings])
    forgers = keys(driver.config, case.environment.members)
    if forgers:
        try:
            with tempfile.TemporaryDirectory(prefix="hunt-mutants-") as mutants:
                judged(Run(folder, folder, forgers), case.seed, Path(mutants), count=MUTANTS)
        except AssertionError as error:
            raise Broken("forged run", str(error)) from None
