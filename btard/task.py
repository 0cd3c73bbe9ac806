"""What a driver needs to know about the model: its size, and how to get gradients of public batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from btard.protocol.effects import Compute
from btard.protocol.hashing import stream


class Task(Protocol):
    """A model and its public data."""

    d: int
    """Number of parameters."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor) -> None:
        """Write the gradient of each request at `params` [d] into the rows of `out` [len(requests), d], float32.

        Each row must depend on `params` and its own request alone: a validator asks for it again.
        """
        ...


@runtime_checkable
class SharedTask(Protocol):
    """A task whose batches are shares of a whole, so that a gradient depends on how many share it."""

    def among(self, workers: int) -> Task:
        """Return the task of a step that so many workers share."""
        ...


class QuadraticTask:
    """Noisy gradients of ||x||^2 / 2, for tests and demonstrations: as cheap as a task can be.

    A row is a function of the parameters and the request's seed alone, to the bit. `requests` keeps what was asked.
    """

    def __init__(self, d: int, noise: float = 1.0) -> None:
        self.d, self.noise = d, noise
        self.requests: list[Compute] = []

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor) -> None:
        """Write params + noise * N(0, I), its sign flipped with flipped labels, into the rows of `out` [r, d]."""
        self.requests += requests
        for request, row in zip(requests, out, strict=True):
            normal = stream("quadratic", request.seed).standard_normal(self.d, dtype=np.float32)
            row.copy_(params + self.noise * torch.from_numpy(normal).to(params.device))
            if request.flip_labels:
                row.neg_()
