"""The interpreter of effects for all drivers: runs a step of the peers of a process, as far as it is the same for all.

A driver says how messages move and where gradients come from (`World`), and when it is too late for a gradient
(`Clock`). Peers in threads are the driver's choice too. The rest is here: phases, time, bytes, and how a step ends.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from btard.aggregation.threads import kernel_threads
from btard.drivers.account import Account
from btard.drivers.letters import Letters
from btard.protocol.commit import CutOff, NoGradient
from btard.protocol.effects import Compute, Effect, Fetch, Idle, Losses, Measure, Purpose
from btard.protocol.ledger import Entry
from btard.protocol.peer import Outcome, Peer
from btard.protocol.signed import Packet
from btard.task import HasLocalState, TooLate


class Fallen(Exception):
    """This process's peer is out of the run: banned, gone or crashed. The others continue without it."""


class Clock:
    """When it is too late for a gradient. By this clock it never is."""

    def start(self, phase: str, work: int = 1) -> None:
        """Note that `phase` begins, in which peers compute something that takes no longer than `work` gradients.

        That is "compute", "judge" once for each gradient that judges compute, or "heal/measure".
        """

    def late(self, step: int, peer: int) -> bool:
        """Whether it is too late for a gradient of `peer` for training or validation; a judge has unlimited time."""
        return False


class Heard(NamedTuple):
    """The result of the letters of a phase."""

    answers: Mapping[int, Mapping[int, Any]]
    """Peer -> sender -> letter. A peer that is missing here no longer takes part in the step."""
    sent: Mapping[int, int]
    """Peer -> bytes that it put on the wire."""


class World(Protocol):
    """What a driver does for the peers of its process, by their numbers."""

    def gradients(
        self, step: int, phase: str, asked: Mapping[int, Compute], too_late: Callable[[], bool]
    ) -> Mapping[int, torch.Tensor]:
        """The gradients [d] that are asked for in a phase of `step`, of the peers that have one before it is too late.

        Called in every such phase, also if nobody here has anything to compute. Errors: TooLate if nobody has one.
        """
        ...

    def talk(self, step: int, letters: Mapping[int, Letters]) -> Heard:
        """Deliver the letters of a phase of `step`, and what the others say in it."""
        ...


class Movable(Protocol):
    """An optimizer over the vector of parameters."""

    def apply(self, gradient: torch.Tensor, step: int) -> None:
        """Move the parameters by the agreed `gradient` [d] of `step`."""
        ...

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what it was, from among other tensors."""
        ...


@dataclass(frozen=True)
class StepResult:
    """One step of the cohort. `gradient` [d] is what the optimizer should apply.

    >>> import btard, torch
    >>> result = btard.LocalDriver(btard.ProtocolConfig(peers=5), btard.QuadraticTask(8)).step(torch.ones(8))
    >>> result.step, result.active, len(result.workers), result.removed, result.back_to
    (0, (0, 1, 2, 3, 4), 5, (), None)
    """

    step: int
    gradient: torch.Tensor
    coin: bytes
    removed: tuple[Entry, ...] = ()
    active: tuple[int, ...] = ()
    workers: tuple[int, ...] = ()
    tau: float | None = None
    """The clipping radius of the step; None at a server, whose rule has its own."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Phase -> seconds spent to get there, all peers together."""
    sent: dict[int, int] = field(default_factory=dict)
    """Peer -> bytes it put on the wire in this step, a copy for each recipient; of the peers this driver runs."""
    account: Account | None = None
    """What each peer did; None at a server."""
    back_to: int | None = None
    """The step to whose beginning everybody goes back. The optimizer is not to apply `gradient` then, but to take over
    `state`."""
    state: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The training's tensors at the beginning of step `back_to`, as `step` was given them there; not to be changed."""

    def move(self, optimizer: Movable, task: object, step: int) -> None:
        """Move the training on: `optimizer` by the gradient, at its `step`, or all of it back to the earlier state."""
        if self.back_to is None:
            optimizer.apply(self.gradient, step)
            return
        optimizer.load(self.state)
        if isinstance(task, HasLocalState):
            task.load_local_state(self.state)


@dataclass
class Course:
    """How a step went for the peers of this process."""

    step: int
    sent: dict[int, int]
    outcomes: dict[int, Outcome | None] = field(default_factory=dict)
    """The result; None for a peer that is out of the run."""
    failures: dict[int, CutOff | NoGradient] = field(default_factory=dict)
    """Errors of peers that could not finish the step. An honest peer's error ends the step for all."""
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    by_phase: dict[int, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    """Peer -> phase -> bytes sent."""

    def result(self, witness: Peer, params: torch.Tensor) -> StepResult:
        """The step as `witness` has it, which reached the end; `params` [d]: of the gradient's dtype and device."""
        outcome, record = self.outcomes[witness.id], witness.last
        assert outcome is not None and record is not None
        return StepResult(
            step=self.step,
            gradient=outcome.gradient(torch.empty_like(params)),
            coin=outcome.coin,
            removed=outcome.removed,
            active=witness.active,
            workers=record.workers,
            tau=record.tau,
            seconds=dict(self.seconds),
            sent=self.sent,
            account=Account.of(record, {peer: dict(phases) for peer, phases in self.by_phase.items()}),
            back_to=outcome.back_to,
        )


def run_step(
    peers: Mapping[int, Peer],
    world: World,
    *,
    measure: Callable[[Mapping[int, Measure]], Mapping[int, Losses]] = lambda asked: {},
    fetch: Callable[[Fetch], Mapping[int, Packet]] = lambda asked: {},
    clock: Clock | None = None,
    each: Callable[[Callable[[int], _Reached], Sequence[int]], Iterable[_Reached]] = map,
    watch: Callable[[str], None] = lambda phase: None,
) -> Course:
    """One step of `peers`, which are all at the same step, in lockstep.

    `measure` returns the losses of earlier states, for peers that ask for them at the end and have these states:
    `Past.measure` (`btard/drivers/past.py`); with `heal` off nobody asks. `fetch` returns aggregates that a peer lacks
    and that the others, which are past the step, still have. `each` lets the peers go on, from one effect to the next,
    perhaps several at a time. `watch` is told each phase as it begins.
    Errors: RuntimeError if honest peers are in two phases at once, which would be a bug of the protocol.
    """
    clock = clock or Clock()
    now = next(iter(peers.values())).t
    running = {i: peer.step() for i, peer in peers.items()}
    course = Course(now, dict.fromkeys(running, 0))
    answers: dict[int, Any] = dict.fromkeys(running)
    byzantine = {i for i, peer in peers.items() if peer.behaviour.byzantine}

    def go_on(i: int) -> _Reached:
        try:
            return running[i].send(answers.get(i))
        except StopIteration as stop:
            return _Ended(stop.value)
        except (CutOff, NoGradient) as error:
            return _Ended(None, error)

    def leave(i: int) -> None:
        running.pop(i).close()
        course.outcomes[i] = None

    while running:
        started = time.perf_counter()
        effects: dict[int, Effect] = {}
        everybody = list(running)
        with kernel_threads(1):
            for i, reached in zip(everybody, each(go_on, everybody), strict=True):
                if not isinstance(reached, _Ended):
                    effects[i] = reached
                    continue
                leave(i)
                course.outcomes[i] = reached.outcome
                if reached.failure is not None:
                    course.failures[i] = reached.failure
                    if i not in byzantine:
                        return course
        phases = {i: effect.phase for i, effect in effects.items()}
        here = in_phase(phases, byzantine)
        for i in [i for i in effects if i not in here]:
            leave(i)
            del effects[i]
        phase = phases[min(here)] if here else "choose"
        short = phase.partition("/")[0]
        course.seconds[short] += time.perf_counter() - started
        if not effects:
            break
        watch(phase)
        started = time.perf_counter()
        if phase == Measure.phase:
            clock.start(phase, max(effect.work for effect in effects.values() if isinstance(effect, Measure | Idle)))
            asked = {i: effect for i, effect in effects.items() if isinstance(effect, Measure)}
            answers = dict.fromkeys(effects) | dict(measure(asked))
        elif phase == Fetch.phase:
            answers = {i: fetch(effect) for i, effect in effects.items() if isinstance(effect, Fetch)}
        elif any(isinstance(effect, Compute | Idle) for effect in effects.values()):
            answers = _compute(now, phase, effects, world, clock)
            short = "gradients"  # these have a line of their own; moving messages belongs to the phase that sends them
        else:
            heard = world.talk(now, {i: Letters.of(effect) for i, effect in effects.items()})
            for i, nbytes in heard.sent.items():
                course.sent[i] += nbytes
                course.by_phase[i][short] += nbytes
            for i in effects.keys() - heard.answers.keys():
                leave(i)
            answers = dict(heard.answers)
        course.seconds[short] += time.perf_counter() - started
    return course


def in_phase(phases: Mapping[int, str], byzantine: Collection[int]) -> frozenset[int]:
    """The peers (peer -> phase) that are in the phase of the honest ones.

    A Byzantine peer that lives in a history of its own may be elsewhere: it no longer takes part in ours.
    Errors: RuntimeError if honest peers are in two phases: a bug, for nothing could be delivered.
    """
    honest = {phase for i, phase in phases.items() if i not in byzantine}
    found = honest or set(phases.values())
    if len(found) > 1:
        raise RuntimeError(f"honest peers are in different phases at once: {sorted(found)}")
    return frozenset(i for i, phase in phases.items() if phase in found)


def _compute(
    now: int, phase: str, effects: Mapping[int, Effect], world: World, clock: Clock
) -> dict[int, torch.Tensor | None]:
    """The gradients that are asked for; None for peers that ask for none, or do not have theirs in time."""

    def late(i: int, request: Compute) -> bool:
        return request.purpose is not Purpose.JUDGE and clock.late(now, i)

    clock.start(phase)
    asked = {i: effect for i, effect in effects.items() if isinstance(effect, Compute) and not late(i, effect)}
    try:
        came = world.gradients(now, phase, asked, lambda: all(late(i, request) for i, request in asked.items()))
    except TooLate:
        came = {}
    return {i: came.get(i) for i in effects}


@dataclass(frozen=True)
class _Ended:
    """End the step of a peer."""

    outcome: Outcome | None
    failure: CutOff | NoGradient | None = None


_Reached = Effect | _Ended
