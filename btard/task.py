"""What the protocol needs of a model: a size, and gradients of public batches, which anybody can recompute."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from btard.protocol.effects import Compute
from btard.protocol.hashing import stream

PARAMETERS = "parameters"
"""What the vector [d] that peers train is called in states, checkpoints and layouts."""


class TooLate(Exception):
    """The gradient would come after its deadline."""


def never() -> bool:
    """A clock by which it is never too late."""
    return False


class Task(Protocol):
    """A model and its public data.

    >>> import btard
    >>> task: btard.Task = btard.QuadraticTask(d=3)  # `btard.TorchTask` is one of any PyTorch model
    """

    d: int
    """Number of parameters."""

    def gradients(
        self,
        params: torch.Tensor,
        requests: Sequence[Compute],
        out: torch.Tensor,
        *,
        workers: int = 1,
        too_late: Callable[[], bool] = never,
    ) -> None:
        """Write the gradient of each request at `params` [d] into the rows of `out` [len(requests), d], float32.

        Each row must depend on `params`, its own request and `workers` alone: a validator asks for it again.
        `workers` peers share the step in question; a task whose batches are shares of a whole goes by it.
        `too_late` is for tasks that take long: ask it between pieces of the work, and raise TooLate once it says so.
        A task that needs neither of the two takes them as `**_`.
        """
        ...


def sharing(active: Collection[int], validators: Collection[int]) -> int:
    """How many `workers` share a step: its active peers that do not validate in it, whether they come or not."""
    return len(set(active) - set(validators))


@runtime_checkable
class HasLocalState(Protocol):
    """A task with a state that belongs to each peer, such as running statistics: it goes back with the parameters."""

    def local_state(self) -> Mapping[str, torch.Tensor]:
        """The state by name; later gradients do not change these tensors."""
        ...

    def load_local_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `local_state` returned, from a dictionary that may hold other tensors."""
        ...


@runtime_checkable
class Measurable(Protocol):
    """A task whose states can be compared, as healing does (`btard.protocol.heal`)."""

    def public_losses(self, params: torch.Tensor, seed: bytes) -> torch.Tensor:
        """The losses [examples], float64 on the CPU, of a public batch drawn with `seed` at `params` [d].

        As in training, so without anybody's own statistics, but nothing is drawn at random beside the batch. A function
        of `params` and `seed` alone, to the bit; some hundred examples tell two states apart.
        """
        ...


class QuadraticTask:
    """Noisy gradients of ||x||^2 / 2, for tests and demonstrations: the cheapest possible task.

    A row is a function of the parameters and the request's seed alone, to the bit. `requests` keeps what was asked.

    >>> import btard, torch
    >>> row = torch.empty(1, 3)
    >>> btard.QuadraticTask(d=3, noise=0).gradients(torch.ones(3), [btard.Compute(step=0, peer=0, seed=b"seed")], row)
    >>> row
    tensor([[1., 1., 1.]])
    """

    def __init__(self, d: int, noise: float = 1.0) -> None:
        self.d, self.noise = d, noise
        self.requests: list[Compute] = []

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        """Write params + noise * N(0, I), its sign flipped with flipped labels, into the rows of `out` [r, d]."""
        self.requests += requests
        for request, row in zip(requests, out, strict=True):
            normal = stream("quadratic", request.seed).standard_normal(self.d, dtype=np.float32)
            row.copy_(params + self.noise * torch.from_numpy(normal).to(params.device))
            if request.flip_labels:
                row.neg_()

    def public_losses(self, params: torch.Tensor, seed: bytes) -> torch.Tensor:
        """||x||^2 / 2 + noise * <x, N(0, I)> for each of 64 examples, [64]."""
        normal = torch.from_numpy(stream("quadratic losses", seed).standard_normal((64, self.d), dtype=np.float32))
        x = params.detach().cpu().double()
        return 0.5 * x @ x + self.noise * normal.double() @ x
