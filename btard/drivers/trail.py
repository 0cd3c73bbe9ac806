"""The states that a run may go back to, and their losses on a public batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from btard.aggregation.threads import kernel_threads
from btard.drivers.loop import StepResult
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Losses, Measure
from btard.protocol.hashing import tensor_digest
from btard.protocol.heal import HEALED, is_kept, oldest, state_digest, window
from btard.protocol.ledger import Entry
from btard.task import PARAMETERS, Measurable, Task, never

Tensors = Mapping[str, torch.Tensor]


def unanswered(digest: bytes) -> None:
    """Nobody else has a state with this digest."""


@dataclass(frozen=True)
class State:
    """The training at the beginning of a step."""

    agreed: Tensors
    """The "parameters" [d], the optimizer's vectors: the same at all honest peers."""
    local: Tensors
    """What belongs to this process alone, such as running statistics: nobody compares it."""

    @classmethod
    def of(cls, params: torch.Tensor, shared: Tensors | None, local: Tensors | None) -> State:
        """Of what a driver's `step` takes."""
        return cls({PARAMETERS: params, **(shared or {})}, local or {})

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {**self.agreed, **self.local}

    def copy(self) -> State:
        return State(*({name: x.detach().clone() for name, x in part.items()} for part in (self.agreed, self.local)))

    def digest(self) -> bytes:
        """The digest of what is agreed; reads it once."""
        return state_digest({name: tensor_digest(x, name) for name, x in self.agreed.items()})


class Trail:
    """The states at the beginnings of some steps, the oldest first: at most about ten. `now`: that of the current step.

    Errors: ValueError if the settings say that states are to be compared, and `task` cannot do it.
    """

    def __init__(self, config: ProtocolConfig, task: Task) -> None:
        if window(config) and not isinstance(task, Measurable):
            raise ValueError(
                f"heal is {config.heal!r}, but {type(task).__name__} has no public_losses(params, seed), by which "
                "states are compared: add it, or set heal to off"
            )
        self.config, self.task = config, task
        self.states: dict[int, State] = {}
        self.step, self.now = -1, State({}, {})

    def record(self, step: int, entries: Sequence[Entry], state: State) -> None:
        """Record that `step` begins with `state`, copied if it may be needed; `entries`: the ledger up to there.

        Its tensors must not change before the step is over.
        """
        self.step, self.now = step, state
        if is_kept(self.config, entries, step):
            first = oldest(self.config, entries, step)
            needed = [s for s in self.states if first <= s < step and is_kept(self.config, entries, s)]
            self.states = {s: self.states[s] for s in needed} | {step: state.copy()}

    def measure(self, request: Measure, too_late: Callable[[], bool] = never) -> Losses | None:
        """The losses that are asked for; None if one of the earlier states is lost, or if they would be too late."""
        if any(step not in self.states for step in request.steps[:-1]):
            return None
        states = [*(self.states[step] for step in request.steps[:-1]), self.now]
        assert isinstance(self.task, Measurable)
        values = []
        for state in states:
            if too_late():
                return None
            with kernel_threads(1):
                values.append(self.task.public_losses(state.agreed[PARAMETERS], request.seed))
        return Losses(tuple(state.digest() for state in states), torch.stack(values))

    def completed(self, result: StepResult, ask: Callable[[bytes], Tensors | None] = unanswered) -> StepResult:
        """`result` with the state that it says to go back to, if any.

        `ask`: the digest of a state that is lost here, or is not what it is for most peers -> what is agreed of it, if
        somebody else has that. Errors: LookupError if nobody does.
        """
        if result.back_to is None:
            return result
        [agreed] = [bytes.fromhex(entry.evidence) for entry in result.removed if entry.kind == HEALED]
        state = self.states.get(result.back_to)
        if state is None or state.digest() != agreed:
            found = ask(agreed)
            if found is None:
                raise LookupError(f"step {result.step}: back to the state of step {result.back_to}, which is lost here")
            state = State(found, self.now.local)
        return replace(result, state=state.tensors)

    def agreed(self, step: int) -> Tensors | None:
        """What was agreed on at the beginning of `step`, for the current step or a kept one; else None."""
        state = self.now if step == self.step else self.states.get(step)
        return None if state is None else state.agreed

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold."""
        return {
            f"trail/{step}/{kind}/{name}": x
            for step, state in self.states.items()
            for kind, part in (("agreed", state.agreed), ("local", state.local))
            for name, x in part.items()
        }

    def restore(self, tensors: Tensors) -> None:
        """Restore what `state` returned, from among other tensors."""
        found: dict[int, dict[str, dict[str, torch.Tensor]]] = {}
        for key, tensor in tensors.items():
            if key.startswith("trail/"):
                _, step, kind, name = key.split("/", 3)
                found.setdefault(int(step), {"agreed": {}, "local": {}})[kind][name] = tensor
        self.states = {step: State(**found[step]) for step in sorted(found)}
