"""A PyTorch optimizer and its schedule over the vector of parameters, with a state that is a few vectors.

So peers can compare the state, hand it over and go back to it. Parameter groups, weight decay and learning rates are
the optimizer's, as everywhere in PyTorch.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from btard.protocol.hashing import digest
from btard.task import PARAMETERS
from btard.training.vector import bind, flatten, parameter_count, shaped, trained, unbind, views

BEGUN, GROUPS = "optimizer begun", "optimizer groups"
TRIAL = 1e-3
"""The gradient of a trial step that shows what an optimizer keeps; the step is undone."""


@runtime_checkable
class OwnOptimizer(Protocol):
    """Moves the parameters of the model, as `VectorOptimizer` does and a class of one's own may.

    Its state is a few vectors, so that peers can compare it and hand it over.
    """

    params: Tensor
    """[d], float32: the parameters of the next step."""

    def lr(self, step: int) -> float:
        """The learning rate of `step`."""
        ...

    def apply(self, gradient: Tensor, step: int) -> None:
        """Move the parameters by the agreed `gradient` [d] of `step`."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on, not copied; `params` under the name "parameters"."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        ...


MakeOptimizer = Optimizer | OwnOptimizer | Callable[[list[nn.Parameter]], Optimizer]
MakeScheduler = LRScheduler | Callable[[Optimizer], LRScheduler]


class Slot(NamedTuple):
    """Where a value of the optimizer's state lies."""

    parameter: nn.Parameter
    key: str
    view: Tensor
    kind: type
    """Tensor, or another value that the optimizer keeps there: int, float or bool."""


def optimizer_for(model: nn.Module, optimizer: MakeOptimizer, scheduler: MakeScheduler | None) -> OwnOptimizer:
    """What moves the parameters of `model`: the one that is given, or the given torch optimizer over vectors.

    Errors: ValueError or TypeError, in one line, for what cannot work.
    """
    if not isinstance(optimizer, OwnOptimizer):
        return VectorOptimizer(model, optimizer, scheduler)
    if scheduler is not None:
        raise ValueError("a scheduler is for a torch optimizer of a btard.TorchTask; others have their own `lr`")
    if optimizer.params.shape != (parameter_count(model),):
        shape = list(optimizer.params.shape)
        raise ValueError(f"the optimizer's params have shape {shape}, the model trains {parameter_count(model)}")
    return optimizer


def check_schedule(optimizer: OwnOptimizer, steps: int) -> None:
    """Raise ValueError if it has no learning rate for the last step: some schedulers end, and would at that step."""
    last = max(0, steps - 1)
    try:
        optimizer.lr(last)
    except ValueError as error:
        raise ValueError(f"there is no learning rate for step {last} of steps={steps}: {error}") from None


class VectorOptimizer:
    """Moves the trained parameters of `model`, which become views of `params` [d] until `release`.

    `optimizer`: one over these parameters, or a class or function that makes one of their list. `scheduler`: a
    learning-rate scheduler of it, or a function that makes one of the optimizer; it moves on once a step, also in steps
    that end with an earlier state. Errors: ValueError or TypeError, in one line, for what cannot work.
    """

    def __init__(self, model: nn.Module, optimizer: MakeOptimizer, scheduler: MakeScheduler | None = None) -> None:
        self.model, self.optimizer = model, _make_optimizer(model, optimizer)
        self.scheduler = None if scheduler is None else _make_scheduler(self.optimizer, scheduler)
        self.params = flatten(model)
        bind(model, self.params)
        self._gradient = torch.zeros_like(self.params)
        self._moved = list(zip(trained(model), views(model, self._gradient), strict=True))
        """Each trained parameter, and its part of the gradient."""
        self._options = [_options(group) for group in self.optimizer.param_groups]
        self._schedule: dict[str, Any] = {} if self.scheduler is None else copy.deepcopy(self.scheduler.state_dict())
        self._position = 0
        """The step whose learning rates the groups have."""
        self._vectors: dict[str, Tensor] = {}
        self._slots: list[Slot] = []
        self._counters: list[tuple[int, str, type]] = []
        """Numbers in the groups that steps change: group, key, and type."""
        self._begun = torch.zeros(1)
        if self.optimizer.state:
            self._lay_out()
            self._begun.fill_(1)
        else:
            self._try_out()

    def lr(self, step: int) -> float:
        """The learning rate of `step`: that of the first group."""
        self._move_to(step)
        return float(self.optimizer.param_groups[0]["lr"])

    def apply(self, gradient: Tensor, step: int) -> None:
        """Move the parameters by the agreed `gradient` [d] of `step`."""
        self._move_to(step)
        self._gradient.copy_(gradient)
        self._step()
        self._begun.fill_(1)
        self._take_in()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next steps depend on, not copied: "parameters" [d] and the optimizer's vectors."""
        return {PARAMETERS: self.params, **({BEGUN: self._begun} if self._vectors else {}), **self._vectors}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned, from among other tensors."""
        with torch.no_grad():
            for name, vector in self.state().items():
                vector.copy_(tensors[name])
        self._forget()
        if not self._vectors or not self._begun.item():
            return
        for slot in self._slots:
            own = self.optimizer.state[slot.parameter]
            own[slot.key] = slot.view if slot.kind is Tensor else slot.kind(slot.view.item())
        for value, (group, key, kind) in zip(self._vectors.get(GROUPS, ()), self._counters, strict=True):
            self.optimizer.param_groups[group][key] = kind(value.item())

    def agreed(self) -> dict[str, str]:
        """What all peers must share of it."""
        said = json.dumps(
            [self._options, type(self.scheduler).__name__, self._schedule], default=_named, sort_keys=True
        )
        return {"optimizer": f"{type(self.optimizer).__name__} {digest('optimizer', said).hex()[:16]}"}

    def release(self) -> None:
        """Give the model's parameters their own memory again."""
        unbind(self.model)

    def _step(self) -> None:
        for parameter, piece in self._moved:
            parameter.grad = piece
        self.optimizer.step()
        for parameter, _ in self._moved:
            parameter.grad = None

    def _move_to(self, step: int) -> None:
        """Set the learning rates of `step`, by as many steps of the scheduler."""
        if self.scheduler is None or step == self._position:
            return
        if step < self._position:  # a peer that was started again repeats steps
            self._reset_schedule()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
            for _ in range(self._position, step):
                self.scheduler.step()
        self._position = step

    def _forget(self) -> None:
        """Reset the optimizer to its state before its first step."""
        self.optimizer.state.clear()
        for index, key, _ in self._counters:
            group, options = self.optimizer.param_groups[index], self._options[index]
            if key in options:
                group[key] = options[key]
            else:
                group.pop(key, None)

    def _reset_schedule(self) -> None:
        assert self.scheduler is not None
        self.scheduler.load_state_dict(copy.deepcopy(self._schedule))
        for i, (group, options) in enumerate(zip(self.optimizer.param_groups, self._options, strict=True)):
            counted = {key for index, key, _ in self._counters if index == i}
            group.update({key: copy.deepcopy(x) for key, x in options.items() if key not in counted})
        self._position = 0

    # The optimizer's state as vectors.

    def _try_out(self) -> None:
        """Find out what the optimizer keeps, by a step that is undone."""
        name, before = type(self.optimizer).__name__, self.params.clone()
        self._gradient.fill_(TRIAL)
        try:
            self._step()
        except Exception as error:
            raise ValueError(f"{name} cannot move the parameters by a gradient that is given: {error}") from None
        for index, (group, options) in enumerate(zip(self.optimizer.param_groups, self._options, strict=True)):
            numbers = {key: value for key, value in _options(group).items() if _number(value)}
            changed = [key for key, value in numbers.items() if key not in options or options[key] != value]
            self._counters += [(index, key, type(numbers[key])) for key in changed]
        self._lay_out()
        self._forget()
        with torch.no_grad():
            self.params.copy_(before)
        for vector in self._vectors.values():
            vector.zero_()

    def _lay_out(self) -> None:
        """Create a vector for every kind of value in the optimizer's state, and place the state in it."""
        found: dict[str, list[tuple[nn.Parameter, str, Any]]] = {}
        for parameter, _ in self._moved:
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is None:
                    continue
                if not isinstance(value, Tensor) and not _number(value):
                    raise ValueError(
                        f"{type(self.optimizer).__name__} keeps a {type(value).__name__} ({key}) in its state, peers "
                        "compare tensors and numbers: use another optimizer"
                    )
                like = value if isinstance(value, Tensor) else torch.zeros((), dtype=torch.float64)
                found.setdefault(f"optimizer {key} {like.dtype} {like.device.type}", []).append((parameter, key, value))
        for name, values in found.items():
            likes = [x if isinstance(x, Tensor) else torch.zeros((), dtype=torch.float64) for _, _, x in values]
            vector = torch.zeros(sum(x.numel() for x in likes), dtype=likes[0].dtype, device=likes[0].device)
            pieces = vector.split([x.numel() for x in likes])
            self._vectors[name.removesuffix(f" {likes[0].dtype} {likes[0].device.type}")] = vector
            for (parameter, key, value), like, piece in zip(values, likes, pieces, strict=True):
                kind = Tensor if isinstance(value, Tensor) else type(value)
                self._slots.append(Slot(parameter, key, shaped(piece, like.shape), kind))
        if self._counters:
            self._vectors[GROUPS] = torch.zeros(len(self._counters), dtype=torch.float64)
        self._take_in()

    @torch.no_grad()
    def _take_in(self) -> None:
        """Make the vectors hold what the optimizer keeps, even if it has created new tensors."""
        for slot in self._slots:
            value = self.optimizer.state[slot.parameter][slot.key]
            if slot.kind is not Tensor:
                slot.view.fill_(value)
            elif value is not slot.view:
                slot.view.copy_(value)
                self.optimizer.state[slot.parameter][slot.key] = slot.view
        for i, (group, key, _) in enumerate(self._counters):
            self._vectors[GROUPS][i] = self.optimizer.param_groups[group][key]


def _make_optimizer(model: nn.Module, optimizer: MakeOptimizer) -> Optimizer:
    made = optimizer if isinstance(optimizer, Optimizer) else None
    if made is None:
        if not callable(optimizer):
            kind = type(optimizer).__name__
            raise TypeError(f"optimizer must be a torch optimizer, or a class or function that makes one, got {kind}")
        made = optimizer(trained(model))
        if not isinstance(made, Optimizer):
            raise TypeError(f"optimizer(parameters) must return a torch optimizer, got {type(made).__name__}")
    own = {id(parameter) for parameter in trained(model)}
    given = [id(x) for group in made.param_groups for x in group["params"] if x.requires_grad]
    if set(given) - own:
        raise ValueError("the optimizer moves parameters that are not the task's model's: make it of that model")
    if own - set(given):
        names = [name for name, parameter in model.named_parameters() if id(parameter) in own - set(given)]
        raise ValueError(
            f"the optimizer leaves out {len(names)} trained parameters, such as {names[0]}: add them, or set "
            "requires_grad to False before you make the task"
        )
    return made


def _make_scheduler(optimizer: Optimizer, scheduler: MakeScheduler) -> LRScheduler:
    made = scheduler if isinstance(scheduler, LRScheduler) or not callable(scheduler) else scheduler(optimizer)
    if isinstance(made, ReduceLROnPlateau):
        raise ValueError("ReduceLROnPlateau goes by a loss, of which each peer has another: use one that goes by steps")
    if not isinstance(made, LRScheduler):
        raise TypeError(f"scheduler must be a learning-rate scheduler, or make one, got {type(made).__name__}")
    if made.optimizer is not optimizer:
        raise ValueError("the scheduler is of another optimizer: make it of the one that is given")
    return made


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}


def _number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _named(value: Any) -> str:
    """The description of an option that is no JSON value."""
    return str(value.item() if isinstance(value, Tensor) and value.numel() == 1 else type(value).__name__)
