"""What a plan becomes before the first step: the peers' settings, the attackers, and the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple, cast

from btard.attacks import Attack, make_attack
from btard.attacks.own import LabelFlip
from btard.attacks.registry import check_hooks, options_of
from btard.checks import FieldError
from btard.named import check_class
from btard.protocol.attackers import draw_attackers
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import tensor_digest
from btard.training.checking import check_whole
from btard.training.loop import Training
from btard.training.optimizer import check_schedule
from btard.training.plan import MakeAttack, Plan, named
from btard.training.torch_task import TorchTask


class Begun(NamedTuple):
    """What a plan has become."""

    behaviours: dict[int, Behaviour]
    collusion: Collusion
    config: ProtocolConfig
    training: Training
    made: dict[str, str]
    """What ranks must have alike, and a run that goes on what it was begun with, by name."""


def begin(plan: Plan, task: TorchTask, peers: int) -> Begun:
    """Make the cohort and its training before the first step. Errors: ValueError or TypeError for what cannot work."""
    check_whole("peers", peers, 1)
    options = plan.attack_options or {}
    behaviours, collusion = behaviours_of(plan.attack, options, task, peers, plan.byzantine, plan.seed)
    config = protocol_of(peers, plan.byzantine, plan.name, plan.protocol)
    training = Training(task, peers, collusion.members, plan)
    check_schedule(training.optimizer, plan.steps)
    chosen = {"seed": repr(plan.seed), "attack": named(plan.attack)}
    chosen |= {f"attack_options.{name}": repr(value) for name, value in options.items()}
    settings = {name: str(value) for name, value in asdict(config).items()}
    first = {"first parameters": tensor_digest(training.optimizer.params).hex()}
    made = {**training.agreed(), **settings, **chosen, **first}
    return Begun(behaviours, collusion, config, training, made)


def protocol_of(peers: int, byzantine: int, run_id: str, settings: Mapping[str, Any]) -> ProtocolConfig:
    """What the peers agree on; one validator, or none if nobody could be a target. Errors: ValueError."""
    known = set(ProtocolConfig.__dataclass_fields__) - {"peers", "byzantine", "run_id"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise TypeError(f"unknown argument {unknown[0]!r}; settings of the protocol are {', '.join(sorted(known))}")
    try:
        return ProtocolConfig(peers, byzantine, run_id, **{"validators": int(peers > 2), **settings})
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise TypeError(f"a setting of the protocol has a value of a wrong type: {given} ({error})") from None


def behaviours_of(
    attack: MakeAttack | None,
    options: Mapping[str, Any],
    task: TorchTask,
    peers: int,
    byzantine: int,
    seed: int,
) -> tuple[dict[int, Behaviour], Collusion]:
    """Attacker -> what it does, and what the attackers share. Errors: ValueError or TypeError."""
    if not isinstance(task, TorchTask):
        raise TypeError(f"task must be a btard.TorchTask, got {type(task).__name__}; LocalDriver runs other tasks")
    if attack is None:
        if options:
            raise TypeError(f"attack_options are for an attack, got {next(iter(options))!r} without one; give attack=")
        return {}, Collusion(frozenset(), peers, seed)
    if byzantine < 1:
        raise ValueError(f"the attack needs attackers: byzantine must be > 0, got {byzantine}")
    if 2 * byzantine >= peers:
        raise FieldError("byzantine", f"must be < peers / 2 = {peers / 2:g}, got {byzantine}")
    collusion = Collusion(draw_attackers(peers, byzantine, seed), peers, seed, tensors=task.tensors)

    def make() -> Behaviour:
        if isinstance(attack, str):
            return make_attack(attack, collusion, **options)
        if isinstance(attack, type) and issubclass(attack, Attack):
            return _of_class(attack, collusion, options)
        expected = (
            "attack must be a name, a class that extends btard.Attack, or a function that makes the behaviour of one "
            "peer of what the attackers share"
        )
        if not callable(attack) or (isinstance(attack, type) and not issubclass(attack, Behaviour)):
            raise TypeError(f"{expected}, got {_kind(attack)}")
        if options:
            raise TypeError("attack_options are for an attack by its name or class; a function sets them itself")
        made = cast(Callable[[Collusion], Behaviour], attack)(collusion)
        if not isinstance(made, Behaviour):
            raise TypeError(f"{expected}; {named(attack)} made {_kind(made)}")
        return made

    behaviours = {peer: make() for peer in sorted(collusion.members)}
    if task.poison is None and any(isinstance(behaviour, LabelFlip) for behaviour in behaviours.values()):
        raise ValueError("the attack flips labels: give TorchTask poison=, which returns a batch as it sees it")
    return behaviours, collusion


def _of_class(attack: type[Attack], collusion: Collusion, options: Mapping[str, Any]) -> Attack:
    """An attack of somebody's own class. Errors: ValueError or TypeError."""
    try:
        check_class(attack, Attack)
        check_hooks(attack)
    except ValueError as error:
        raise ValueError(f"the attack {attack.__name__} {error}") from None
    try:
        return attack(collusion=collusion, **options)
    except TypeError as error:
        known = ", ".join(info.name for info in options_of(attack))
        raise TypeError(f"the attack {attack.__name__} cannot be made: {error}; it has the options {known}") from None


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
