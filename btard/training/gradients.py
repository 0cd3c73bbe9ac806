"""The gradient of a PyTorch module on the batch that a public seed draws: anybody can recompute it to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from btard.protocol.hashing import stream
from btard.task import TooLate, never
from btard.training.checking import check_data, check_model
from btard.training.randomness import seeded
from btard.training.vector import bind, flatten, parameter_count, trained, views

Loss = Callable[[nn.Module, Any], Tensor]


class Gradients:
    """A copy of a module, its loss and data, for one gradient at a time; `btard.TorchTask` says what each argument is.

    A gradient follows from the parameters, the buffers and the seed that are given. Nothing here remembers a peer.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Any,
        batch_size: int,
        *,
        collate: Callable[[list[Any]], Any] | None,
        poison: Callable[[Any], Any] | None,
        micro_batch: int | None,
        seed: int,
    ) -> None:
        check_model(model)
        if type(self).batch is Gradients.batch:
            check_data(data, batch_size, DataLoader)
        if micro_batch is not None and (not isinstance(micro_batch, int) or micro_batch < 1):
            raise ValueError(f"micro_batch must be a number of samples > 0, or None for all, got {micro_batch!r}")
        for name, function in (("loss", loss), ("collate", collate), ("poison", poison)):
            if not callable(function) and (name == "loss" or function is not None):
                raise TypeError(f"{name} must be a function, got {type(function).__name__}")
        self.model, self.data, self.batch_size, self.seed = model, data, batch_size, seed
        self.poison, self.micro_batch = poison, micro_batch
        self.d: int = parameter_count(model)
        """Number of trained parameters."""
        self.tensors = tuple(parameter.numel() for parameter in trained(model))
        """The number of them in each tensor, in order: an attack may treat tensors separately."""
        self.device: torch.device = trained(model)[0].device
        self.loss_function, self._collate = loss, collate or default_collate
        self._copy = self.own(model)
        self._flat = flatten(self._copy)
        bind(self._copy, self._flat)
        self.initial = {name: buffer.clone() for name, buffer in self._copy.named_buffers()}
        self.moving: tuple[str, ...] = tuple(self.initial)
        """The buffers that a gradient changes, once `check` has found out."""

    def batch(self, seed: bytes, size: int, *, poisoned: bool = False, start: int = 0, stop: int | None = None) -> Any:
        """Samples `start` .. `stop` - 1, by default all, of the batch of `size` that `seed` draws, on the device.

        The generators that samples may draw from are seeded outside. A subclass that overrides it may take any `data`.
        """
        drawn = stream("samples", self.seed, seed).choice(len(self.data), size, replace=False)[start:stop]
        batch = moved_to(self.device, self._collate([self.data[int(index)] for index in drawn]))
        if not poisoned:
            return batch
        if self.poison is None:
            raise ValueError("this attack flips labels: give TorchTask poison=, which returns a batch as it sees it")
        return self.poison(batch)

    def compute(
        self,
        seed: bytes,
        row: Tensor,
        buffers: Mapping[str, Tensor],
        *,
        size: int | None = None,
        poisoned: bool = False,
        too_late: Callable[[], bool] = never,
    ) -> tuple[float, dict[str, Tensor]]:
        """Write the gradient of `size` samples at the current parameters into `row` [d]; loss, changed `buffers`.

        `too_late` is asked before each micro-batch. Errors: TooLate.
        """
        size = self.batch_size if size is None else size
        direct = row.device == self.device and row.is_contiguous() and row.dtype == torch.float32
        gradient = row.zero_() if direct else torch.zeros_like(self._flat)
        self.put(buffers)
        parameters = trained(self._copy)
        for parameter, piece in zip(parameters, views(self._copy, gradient), strict=True):
            parameter.grad = piece
        total, together = 0.0, self.micro_batch or size
        try:
            for start in range(0, size, together):
                if too_late():
                    raise TooLate
                stop = min(start + together, size)
                with torch.enable_grad(), seeded(self.device, "gradient", self.seed, seed, start):
                    batch = self.batch(seed, size, poisoned=poisoned, start=start, stop=stop)
                    loss = self.loss_function(self._copy, batch)
                    part = loss if stop - start == size else loss * ((stop - start) / size)
                    self.backward(part)
                total += float(part.detach())
        finally:
            for parameter in parameters:
                parameter.grad = None
        if not direct:
            row.copy_(gradient)
        names = dict(self._copy.named_buffers())
        return total, {name: names[name].detach().clone() for name in self.moving}

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to the gradients in `module`."""
        loss.backward()

    def own(self, model: nn.Module) -> nn.Module:
        """The module that the task computes on: a copy."""
        try:
            return copy.deepcopy(model)
        except Exception as error:
            raise ValueError(f"the model cannot be copied, and each peer needs its own copy: {error}") from None

    @property
    def module(self) -> nn.Module:
        """The copy of the model that the task computes on."""
        return self._copy

    def load(self, params: Tensor) -> None:
        """Put `params` [d] into `module`."""
        self._flat.copy_(params)

    def put(self, buffers: Mapping[str, Tensor]) -> None:
        """Put these buffers into `module`."""
        into = dict(self._copy.named_buffers())
        with torch.no_grad():
            for name in self.moving:
                into[name].copy_(buffers[name])


def moved_to(device: torch.device, batch: Any) -> Any:
    """Return the batch with every tensor in it on the device."""
    if device.type == "cpu":
        return batch
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: moved_to(device, part) for name, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved_to(device, part) for part in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(moved_to(device, part) for part in batch)
    return batch
