"""What the tests of attacks on healing share: peers that apply their own outcomes, the bounds that hold, attackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from btard.attacks import make_attack
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Losses
from btard.protocol.heal import HEALED, batch_seed, candidates, measured, window
from btard.protocol.identity import Identity
from btard.protocol.ledger import GRADUATED, Entry
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


class Forgetful(Cohort):
    """The peers in `forgot` have lost the earlier states."""

    def __init__(self, behaviours: Mapping[int, Behaviour], **settings: Any) -> None:
        super().__init__(behaviours, **settings)
        self.forgot: tuple[int, ...] = ()
        measure = self.past.measure
        self.past.measure = lambda asked: {i: x for i, x in measure(asked).items() if i not in self.forgot}
