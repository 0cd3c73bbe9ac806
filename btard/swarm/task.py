"""What a swarm trains: a task and its optimizer, which a function `module:function` creates from the settings."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_type_hints, runtime_checkable

import torch

from btard.extras import MissingPackages
from btard.harness.device import pick_device
from btard.harness.typed_yaml import ConfigError
from btard.swarm.config import SwarmConfig
from btard.task import Task
from btard.training.checking import check_peers
from btard.training.kernels import check_bits, choose_exact_kernels
from btard.training.layout import Slot
from btard.training.optimizer import OwnOptimizer, check_schedule, optimizer_for
from btard.training.torch_task import TorchTask


class Training(Task, Protocol):
    """A task as a trainer and a coordinator need it."""

    loss: float
    """Loss of the latest gradient that was computed for training; NaN before the first one."""

    def samples(self, workers: int) -> int:
        """Examples that each of `workers` peers computes in a step: a number to show, nothing depends on it."""
        ...

    def agreed(self) -> Mapping[str, Any]:
        """What all peers must share in addition to the settings, by name: JSON values, such as a digest of the data."""
        ...


@runtime_checkable
class Evaluated(Protocol):
    """A task that can also be measured: the coordinator does so with every checkpoint."""

    def evaluation(self) -> Callable[[torch.Tensor], float | Mapping[str, float]]:
        """A function that returns the validation loss at parameters [d], or numbers by name with `validation_loss`.

        Called once, when the coordinator starts.
        """
        ...


@runtime_checkable
class HasNames(Protocol):
    """A task whose parameters have names: then its runs can be exported (`python -m btard.export`)."""

    def layout(self) -> Sequence[Slot]:
        """Where the named tensors lie in the vector [d]; for a module, `btard.training.layout.layout_of` returns it."""
        ...


@runtime_checkable
class Keeps(HasNames, Protocol):
    """One that names tensors beside the vector, too, as `btard.training.layout.state_layout` does."""

    def kept(self) -> Mapping[str, torch.Tensor]:
        """What is beside the vector, as it is before the first step: `btard.training.layout.kept`."""
        ...


@runtime_checkable
class Auditable(Protocol):
    """A task that an auditor can create from a peer's run folder."""

    made_by: str
    """The module:function that creates it."""


@dataclass(frozen=True)
class TaskSource:
    """Where task and optimizer come from. `make` may raise ConfigError, in one line, for what the user must correct."""

    name: str
    """module:function"""
    make: Callable[[Any], Any]
    """Returns (task, optimizer), or (btard.TorchTask, torch optimizer) with an optional scheduler: see `ready`."""
    config: type[SwarmConfig]
    """The class of the settings that `make` takes."""


def load_task(name: str) -> TaskSource:
    """The task of this name, module:function.

    The annotation of the function's parameter says which settings a swarm has: `SwarmConfig`, or a dataclass that
    extends it by the task's own. Errors: ConfigError; MissingPackages.
    """
    module, _, function = name.partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
        parameters = list(inspect.signature(make).parameters)
        hint = get_type_hints(make).get(parameters[0], SwarmConfig)
    except MissingPackages:
        raise
    except (ImportError, AttributeError, ValueError, TypeError, NameError, IndexError) as error:
        raise ConfigError(
            f"--task {name}: {error}; expected module:function, which takes the settings and returns task and optimizer"
        ) from None
    if not (isinstance(hint, type) and issubclass(hint, SwarmConfig)):
        raise ConfigError(f"--task {name}: takes {hint}; expected a class that extends btard.swarm.config.SwarmConfig")
    return TaskSource(name, make, hint)


def ready(source: TaskSource, config: SwarmConfig) -> tuple[Training, OwnOptimizer]:
    """Task and optimizer for these settings, checked; a torch optimizer is wrapped into one that moves vectors.

    Errors: ConfigError for what cannot be trained by so many peers, and those of `source.make`.
    """
    exact = config.protocol.validation == "exact"
    if exact:
        choose_exact_kernels(pick_device(config.device))
    made = source.make(config)
    try:
        task, optimizer, *rest = made
        [scheduler] = rest or [None]
    except (TypeError, ValueError):
        raise ConfigError(
            f"--task {source.name}: must return (task, optimizer) or (task, optimizer, scheduler), got "
            f"{type(made).__name__}"
        ) from None
    try:
        check_peers(task.d, config.peers)
        if isinstance(task, TorchTask):
            task.check(exact=exact)
        if isinstance(task, TorchTask):
            optimizer = optimizer_for(task.model, optimizer, scheduler)
        elif scheduler is not None:
            raise ValueError("a scheduler is for a torch optimizer of a btard.TorchTask; others have their own `lr`")
        check_schedule(optimizer, config.steps)
        if exact and optimizer.params.device.type != "cpu" and not isinstance(task, TorchTask):
            advice = "set protocol.validation to tolerant (docs/aws.md says what it needs), or device to cpu"
            check_bits(task, optimizer.params, together=False, advice=advice)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--task {source.name}: {error}") from None
    return task, optimizer
