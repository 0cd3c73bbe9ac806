"""Cohorts and their mishaps, drawn within the bounds of docs/protocol.md ("Sets that decide")."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace

from btard.drivers.links import Links
from btard.protocol.commit import MISSED, PRESENT
from btard.protocol.config import ROUNDED_APART, ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.hashing import stream
from btard.protocol.record import StepRecord
from btard.task import QuadraticTask, Task
from scripts.hunt.cases import Environment, Faint, Life, Newcomer
from scripts.hunt.room import RECIPIENTS

PHASES = (
    "part",
    "aggregate",
    "coin_reveal/0",
    "recover/0",
    "report",
    "recover/1",
    "disclose",
    "accuse/0",
    "evidence/0",
    "lacking/0",
    "vote/0",
    "accuse/1",
    "vote/1",
)
"""Phases from which on an honest peer may be gone; it owes something in each."""
MAX_ABSENCES = 3
HALVED = 0.08
"""Chance that gradients travel as float16."""
CALM = 0.15
"""The share of environments in which mishaps end, so that progress is promised."""

FAINT = 0.15
"""The share of environments in which honest peers are late."""

HEALED = 0.4
"""The share of environments in which the run goes back to earlier states."""

SHAPES = ("normal", "equal", "frozen", "heavy", "layers", "sparse", "far")
"""Kinds of gradients: noise around the parameters; all the same; half of the parameters frozen; heavy tails; layers of
very different size; nearly all entries zero; rows that lie far from each other in one direction."""


class Gradients(QuadraticTask):
    """Gradients of a kind in `SHAPES` and of size `scale`; a peer with a `machine` computes a little differently.

    They follow the parameters, within bounds, so that no training diverges.
    """

    def __init__(self, d: int, shape: str, scale: float, machine: int | None = None) -> None:
        super().__init__(d)
        self.shape, self.scale, self.machine = shape, scale, machine

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        pull = torch.tanh(params / self.scale)
        for request, row in zip(requests, out, strict=True):
            rng = stream("hunt gradient", request.seed)
            noise = rng.standard_normal(self.d)
            if self.shape == "equal":
                noise[:] = 0
            elif self.shape == "heavy":
                noise *= np.exp(2 * rng.standard_normal(self.d))
            elif self.shape == "sparse":
                noise *= rng.random(self.d) < 0.1
            elif self.shape == "far":
                noise += np.exp(3 * rng.standard_normal())
            elif self.shape == "layers":
                noise *= np.logspace(-6, 0, self.d)
            row.copy_(torch.from_numpy(noise.astype(np.float32)))
            if self.shape not in ("sparse", "layers"):
                row.add_(pull)
            if request.flip_labels:
                row.neg_()
        if self.shape == "frozen":
            out[:, self.d // 2 :] = 0
        out.mul_(self.scale)
        if self.machine is not None:
            out.mul_(1 + 1e-6 * (self.machine + 1))

    def public_losses(self, params: torch.Tensor, seed: bytes) -> torch.Tensor:
        """Smallest at the point to which the gradients pull; of about the same size for every `scale`."""
        return super().public_losses(params.double() / self.scale, seed)


@dataclass(frozen=True)
class Weather(Links):
    """Links that lose messages, and peers whose gradients are late when the environment says so."""

    slow_peers: frozenset[tuple[int, int]] = frozenset()
    """(peer, step)."""
    faint: tuple[tuple[Faint, tuple[int, ...]], ...] = ()
    """A peer that is late, and the peers that do not hear it."""
    calm: float = math.inf
    """The step from which on nothing is lost."""

    def lost(self, step: int, phase: str, peers: int, *, acknowledged: bool) -> np.ndarray | None:
        lost = None if step >= self.calm else super().lost(step, phase, peers, acknowledged=acknowledged)
        for faint, deaf in self.faint:
            if faint.peer < peers and faint.lost_in(step, phase):
                lost = np.zeros((peers, peers), dtype=bool) if lost is None else lost
                lost[faint.peer, [peer for peer in deaf if peer < peers]] = True
        return lost

    def late(self, step: int, peer: int) -> bool:
        return (peer, step) in self.slow_peers


def deaf_to(environment: Environment, faint: Faint) -> tuple[int, ...]:
    """The peers of the start that do not hear it."""
    honest = [peer for peer in range(environment.peers) if peer not in (faint.peer, *environment.members)]
    return (*RECIPIENTS[faint.to](honest, faint.pick), *(() if faint.liars else environment.members))


def weather_of(environment: Environment, seed: int) -> Weather:
    calm = math.inf if environment.calm is None else environment.calm
    return Weather(
        loss=environment.loss,
        attempts=30,
        seed=seed,
        slow_peers=frozenset(environment.late),
        faint=tuple((faint, deaf_to(environment, faint)) for faint in environment.faint),
        calm=calm,
    )


def config_of(environment: Environment, seed: int) -> ProtocolConfig:
    env = environment
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few honest workers: that is allowed, and promised something for
        return ProtocolConfig(
            peers=env.peers,
            byzantine=env.byzantine,
            run_id=f"hunt {seed}",
            validators=env.validators,
            tau=math.inf if env.tau == "inf" else env.tau,
            validation=env.validation,
            gradient_tol=env.gradient_tol,
            directions=env.directions,
            delta_max=env.delta_max,
            clip_lambda=env.clip_lambda,
            wire=env.wire,
            probation=env.probation,
            heal=env.heal,
            relays=env.relays,
            max_absences=MAX_ABSENCES,
        )


def tasks_of(environment: Environment) -> tuple[Task, Mapping[int, Task] | None]:
    """The task, and in mode `tolerant` those of peers that compute a little differently."""
    env = environment
    task = Gradients(env.d, env.gradients, env.scale)
    if env.validation == "exact":
        return task, None
    return task, {i: Gradients(env.d, env.gradients, env.scale, machine=i) for i in range(env.peers)}


def missing_at(environment: Environment, step: int) -> set[int]:
    """Honest peers on which no voter of a trial in `step` can count: away or late in it or before it, or dropped."""
    away = {peer for peer, when in environment.away if when in (step, step - 1)}
    away |= {faint.peer for faint in environment.faint if faint.step in (step, step - 1)}
    return away | {peer for peer, when, _ in environment.drops if when <= step}


def unheard_in(environment: Environment, record: StepRecord) -> set[int]:
    """Late honest peers that no other present one hears in a step, or that may be away for what was said in `join`."""
    away = {peer for peer, when in environment.away if when == record.step}
    honest = set(record.active).intersection(range(environment.peers)) - set(environment.members) - away
    return {
        faint.peer
        for faint in environment.faint
        if faint.step == record.step
        and (faint.phase != "commit" or honest <= {faint.peer, *deaf_to(environment, faint)})
    }


def is_calm(environment: Environment, step: int) -> bool:
    """Whether the honest peers and their links are well from `step` on."""
    return environment.calm is not None and step >= environment.calm


def calmed(environment: Environment, step: int) -> Environment:
    """`environment` without the mishaps from `step` on."""
    env, life = environment, environment.life
    return replace(
        env,
        calm=step,
        away=tuple(item for item in env.away if item[1] < step),
        late=tuple(item for item in env.late if item[1] < step),
        drops=tuple(item for item in env.drops if item[1] < step),
        faint=tuple(faint for faint in env.faint if faint.step < step),
        life=life if life is not None and life.lost <= step else None,
    )


def problem(environment: Environment, steps: int) -> str | None:
    """Why the documentation promises nothing for this environment; None if it does."""
    env = environment
    n, b, m = env.peers, env.byzantine, env.validators
    hostile = len(env.members) + sum(newcomer.hostile for newcomer in env.newcomers)
    honest = set(range(n)) - set(env.members)
    missing = {*env.away, *env.late, *((faint.peer, faint.step) for faint in env.faint)}
    troubled = {item[0] for item in (*missing, *env.drops)}
    if not (2 * b < n and 2 * m < n and hostile <= b and set(env.members) <= set(range(n)) and env.d >= n + 3):
        return "n, b, m and d do not fit together"
    if not troubled <= honest:
        return "mishaps are for honest peers of the start"
    if env.tau == "auto" and b and b >= 0.5 * (n - m):
        return "tau auto needs fewer liars"
    if env.validation == "tolerant" and env.wire != "float32" and env.gradient_tol < 2 * ROUNDED_APART:
        return "rounding moves gradients farther apart"
    if env.newcomers and env.probation is None:
        return "nobody can join"
    if env.recorded and (env.commitments == "ideal" or env.life is not None):
        return "nothing to audit"
    if env.relays is not None and not b <= env.relays < n:
        return "fewer relays than liars, or more than peers"
    if (env.loss or env.faint) and not (b or env.relays):
        return "nobody makes up for what is lost"
    if env.loss and len(honest) < 5:
        return "a message could be lost to all"
    if (env.loss and (env.drops or env.away or env.faint)) or (env.faint and env.drops):
        return "one mishap of links is enough"
    if len({(faint.peer, faint.step) for faint in env.faint}) < len(env.faint):
        return "one mishap of a peer in a step is enough"
    if any(faint.phase != "commit" and env.probation is None for faint in env.faint):
        return "nobody can join, so nobody is late in it"
    if env.drops and env.life:
        return "a peer that drops is gone for good"
    if len({peer for peer, *_ in env.drops}) < len(env.drops):
        return "a peer drops once"
    if env.life is not None and not 0 < env.life.saved <= env.life.lost < steps:
        return "the checkpoint is not within the run"
    if env.calm is not None and (env.calm >= steps or calmed(env, env.calm) != env):
        return "not calm to the end"
    if any(2 * b >= n - len(missing_at(env, step)) for step in range(steps + 1)):
        return "too many honest peers are away: b < (n - a)/2"
    for peer in troubled:
        count = 0
        for step in range(steps):
            count = count + MISSED if (peer, step) in missing else max(0, count - PRESENT)
            if count >= MISSED * MAX_ABSENCES:
                return "a peer would be gone"
    return None


def draw_steps(rng: np.random.Generator) -> int:
    """The length of a run: mostly short."""
    return int(rng.choice([2, 3, 4, 5, 6, 8, 12], p=[0.08, 0.22, 0.25, 0.2, 0.13, 0.08, 0.04]))


def draw(rng: np.random.Generator, steps: int) -> Environment:
    """An environment within the documentation's promises."""
    while True:
        found = _draw(rng, steps)
        if problem(found, steps) is None:
            return found


def _draw(rng: np.random.Generator, steps: int) -> Environment:
    n = int(rng.choice([3, 4, 5, 6, 7, 8], p=[0.09, 0.28, 0.26, 0.19, 0.1, 0.08]))
    if rng.random() < 0.1:  # large cohorts take long
        n = int(rng.integers(9, 17))
    m = int(min((n - 1) // 2, rng.choice([1, 1, 1, 2, 3])))
    most = (n - 1) // 2
    strict = max(0, (n - m - 1) // 2)
    b = int(rng.choice([most, most, strict, int(rng.integers(0, most + 1))]))
    joins = rng.random() < 0.12
    newcomers: tuple[Newcomer, ...] = ()
    hostile = b
    if joins:
        count = int(rng.integers(1, 3))
        newcomers = tuple(
            Newcomer(int(rng.integers(0, max(1, steps // 2))), bool(rng.random() < 0.4)) for _ in range(count)
        )
        hostile = max(0, b - sum(newcomer.hostile for newcomer in newcomers))
    members = tuple(sorted(int(i) for i in rng.choice(n, hostile, replace=False)))
    honest = [i for i in range(n) if i not in members]
    scale = 1.0 if rng.random() < 0.75 else float(10.0 ** rng.integers(-40, 16))
    environment = Environment(
        peers=n,
        members=members,
        byzantine=b,
        validators=m,
        d=int(rng.choice([n + 3, 2 * n + 1, 3 * n, 40, 97])) if n < 12 else int(rng.choice([n + 3, 40, 97])),
        tau=_tau(rng, scale),
        validation="tolerant" if rng.random() < 0.35 else "exact",
        gradient_tol=float(rng.choice([0.1, 1e-3])),
        directions=int(rng.choice([1, 1, 2])),
        delta_max=None if rng.random() < 0.9 else float(rng.choice([1.0, 100.0])),
        clip_lambda=None if rng.random() < 0.9 else float(rng.choice([0.5, 5.0])),
        commitments="ideal" if rng.random() < 0.1 else "hashed",
        gradients=str(rng.choice(SHAPES, p=[0.5, 0.05, 0.15, 0.1, 0.08, 0.06, 0.06])),
        scale=scale,
        relays=None if rng.random() < 0.85 else b + int(rng.choice([0, 0, 1])),
        probation=int(rng.integers(1, 4)) if joins else None,
        newcomers=newcomers,
        beside=bool(rng.random() < 0.02),
        recorded=bool(rng.random() < 0.06),
    )
    kind = rng.random()
    if kind < 0.12:  # as many as can be, all in one step
        step, most = int(rng.integers(0, steps)), max(1, min(len(honest), n - 2 * b - 1))
        count = most if rng.random() < 0.6 else int(rng.integers(1, most + 1))
        away = {(int(peer), step) for peer in rng.choice(honest, count, replace=False)}
        environment = replace(environment, away=tuple(sorted(away)))
    elif kind < 0.35:
        peers = [int(rng.choice(honest)) for _ in range(int(rng.integers(1, 3)))]
        away = {(peer, int(rng.integers(0, steps))) for peer in peers for _ in range(int(rng.integers(1, 4)))}
        environment = replace(environment, away=tuple(sorted(away)))
    elif kind < 0.45:
        relays = environment.relays if b or environment.relays else 1
        environment = replace(environment, loss=float(rng.choice([0.05, 0.1, 0.2])), relays=relays)
    elif kind < 0.52:
        environment = replace(environment, drops=_drops(rng, honest, steps, max(1, n - 2 * b - 1)))
    if rng.random() < 0.12:
        late = {(int(rng.choice(honest)), int(rng.integers(0, steps))) for _ in range(int(rng.integers(1, 5)))}
        environment = replace(environment, late=tuple(sorted(late)))
    if rng.random() < 0.15 and steps > 2:
        saved = int(rng.integers(1, steps - 1))
        environment = replace(environment, life=Life(saved, int(rng.integers(saved, steps - 1))), recorded=False)
    if not environment.loss and not environment.drops and rng.random() < FAINT:
        when = [step for _, step in environment.away] or range(steps)
        late_peers = tuple(_faint(rng, honest, when, steps, joins) for _ in range(int(rng.choice([1, 1, 2]))))
        relays = environment.relays if b or environment.relays else 1
        environment = replace(environment, faint=late_peers, relays=relays)
    if m and rng.random() < HEALED:
        window = int(rng.choice([1, 2, 3, 5, 0]))
        environment = replace(environment, heal=window or "auto")
    if rng.random() < HALVED:
        wire, tol = str(rng.choice(["float16-parts", "float16"])), max(environment.gradient_tol, 2 * ROUNDED_APART)
        environment = replace(environment, wire=wire, gradient_tol=tol)
    if rng.random() < CALM:
        environment = calmed(environment, int(rng.integers(0, steps)))
    return environment


def _drops(rng: np.random.Generator, honest: Sequence[int], steps: int, most: int) -> tuple[tuple[int, int, str], ...]:
    """Some of the honest peers, up to `most`, often all in the same phase."""
    count = 1 if rng.random() < 0.5 else int(rng.integers(1, min(most, len(honest)) + 1))
    step, phase, together = int(rng.integers(0, steps)), str(rng.choice(PHASES)), rng.random() < 0.6
    peers = sorted(int(peer) for peer in rng.choice(honest, count, replace=False))
    return tuple((peer, step, phase if together else str(rng.choice(PHASES))) for peer in peers)


def _faint(rng: np.random.Generator, honest: Sequence[int], when: Sequence[int], steps: int, joins: bool) -> Faint:
    """Often in one of the steps `when` others are away."""
    return Faint(
        peer=int(rng.choice(honest)),
        step=int(rng.choice(when if rng.random() < 0.5 else range(steps))),
        phase=str(rng.choice(["commit", "join", "join/relay"] if joins else ["commit"])),  # type: ignore[arg-type]
        to="all" if rng.random() < 0.4 else str(rng.choice(sorted(RECIPIENTS))),
        liars=bool(rng.random() < 0.7),
        pick=int(rng.integers(0, 64)),
    )


def _tau(rng: np.random.Generator, scale: float) -> Any:
    """A radius over 24 decades, mostly by the size of the gradients."""
    kind, unit = rng.random(), scale if rng.random() < 0.7 else 1.0
    if kind < 0.45:
        return unit * float(rng.choice([0.1, 1.0, 3.0]))
    if kind < 0.65:
        return "auto"
    if kind < 0.75:
        return "inf"
    return unit * float(10.0 ** rng.integers(-12, 13))


def mutated(environment: Environment, rng: np.random.Generator, steps: int) -> Environment:
    """A neighbour: some of it comes from another draw."""
    for _ in range(20):
        other = _draw(rng, steps)
        names = [name for name in environment.__struct_fields__ if name not in ("peers", "members", "byzantine")]
        chosen = {str(name) for name in rng.choice(names, int(rng.integers(1, 4)), replace=False)}
        found = replace(environment, **{name: getattr(other, name) for name in chosen})
        if found.calm is not None:
            found = calmed(found, found.calm)
        if problem(found, steps) is None:
            return found
    return environment
