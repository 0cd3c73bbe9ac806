"""A PyTorch module as a task: gradients of public batches, which anybody can recompute to the bit."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from btard.protocol.effects import Compute, Purpose
from btard.protocol.hashing import digest, stream, tensor_digest
from btard.task import TooLate, never
from btard.training.checking import check_data, check_model, check_task
from btard.training.contents import data_digest
from btard.training.kernels import choose_exact_kernels
from btard.training.layout import LOCAL, Slot, kept, state_layout
from btard.training.randomness import seeded
from btard.training.vector import bind, flatten, parameter_count, trained, views

GROUPS, GROUP = 16, 32
"""States are compared by the losses of this many small batches, of at most this many examples each."""
LOOKED_AT = 32
"""Number of samples by which peers compare their data sets."""

Loss = Callable[[nn.Module, Any], Tensor]


class TorchTask:
    """The loss of a PyTorch model on a data set, as peers train it: `btard.Task`, in every driver the same.

    `model`: any module with float32 parameters. Those with `requires_grad` are trained; the others are frozen, and
    equal at all peers. It is copied: the task computes on a module of its own, in the modes (`train`, `eval`) that the
    given one is in. `btard.simulate` and `btard.distributed` write the trained parameters into the given one.

    `loss(model, batch)` returns the mean loss of a batch, one number with a gradient. It has to use the model that it
    is given.

    `data`: a dataset with a length and an index, such as `torch.utils.data.TensorDataset` or a list. Each peer computes
    `batch_size` different samples in a step. Which ones follows from the request's public seed and from `seed`, and so
    does all that the model and the dataset draw at random from torch, numpy's global generator or `random`: dropout,
    augmentation. `collate` makes a batch of a list of samples; by default it is PyTorch's. Batches are moved to the
    model's device.

    `micro_batch` samples are computed at once, by default all: fewer take less memory, and the gradient is that of the
    whole batch. BatchNorm then normalises by the micro-batch.

    `poison(batch)` returns the batch as an attacker sees it that flips labels; needed for the attack `label_flip`
    alone.

    `made_by`: the function that makes this task, or its name module:function. Run folders name it, and `python -m
    btard.audit` calls it without arguments to compute gradients again. A swarm names the function of its `--task`.

    Buffers that training moves, such as BatchNorm's running statistics, are each peer's own and no part of what peers
    agree on.

    Errors: ValueError or TypeError, in one line, for what cannot work. `check` finds what shows only when a gradient is
    computed; whatever runs the task calls it.

    >>> import torch, btard
    >>> x = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    >>> data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
    >>> model = torch.nn.Linear(10, 1)
    >>> task = btard.TorchTask(model, lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), data, 8)
    >>> task.d
    11
    """

    made_by = ""
    """module:function that makes the task again, for an audit."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Any,
        batch_size: int,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        poison: Callable[[Any], Any] | None = None,
        micro_batch: int | None = None,
        seed: int = 0,
        made_by: str | Callable[[], Any] = "",
    ) -> None:
        check_model(model)
        if type(self).batch is TorchTask.batch:
            check_data(data, batch_size, DataLoader)
        if micro_batch is not None and (not isinstance(micro_batch, int) or micro_batch < 1):
            raise ValueError(f"micro_batch must be a number of samples > 0, or None for all, got {micro_batch!r}")
        for name, function in (("loss", loss), ("collate", collate), ("poison", poison)):
            if not callable(function) and (name == "loss" or function is not None):
                raise TypeError(f"{name} must be a function, got {type(function).__name__}")
        self.model, self.data, self.batch_size, self.seed = model, data, batch_size, seed
        self.made_by = function_name(made_by) or type(self).made_by
        self.poison, self.micro_batch = poison, micro_batch
        self.d: int = parameter_count(model)
        """Number of trained parameters."""
        self.tensors = tuple(parameter.numel() for parameter in trained(model))
        """The number of them in each tensor, in order: an attack may treat tensors separately."""
        self.device: torch.device = trained(model)[0].device
        self.loss: float = math.nan
        """Loss of the latest gradient that was computed for training; NaN before."""
        self.losses: dict[int, float] = {}
        """Peer -> loss of the latest gradient that it computed for training."""
        self.loss_function, self._collate = loss, collate or default_collate
        self._copy = self.own(model)
        self._flat = flatten(self._copy)
        bind(self._copy, self._flat)
        self.initial = {name: buffer.clone() for name, buffer in self._copy.named_buffers()}
        self.moving: tuple[str, ...] = tuple(self.initial)
        """The buffers that a gradient changes, once `check` has found out."""
        self._buffers: dict[int, dict[str, Tensor]] = {}
        """Peer -> its own buffers."""
        self._checked: set[bool] = set()

    # What the protocol asks for (`btard.task`).

    def gradients(
        self,
        params: Tensor,
        requests: Sequence[Compute],
        out: Tensor,
        *,
        workers: int = 1,
        too_late: Callable[[], bool] = never,
    ) -> None:
        """Write the gradient of each request at `params` [d] into the rows of `out` [len(requests), d], float32.

        A row depends on `params` and its own request alone, to the bit, for equal hardware and numbers of threads.
        Errors: TooLate, which is looked for before each micro-batch; ValueError for poisoned batches without `poison`.
        """
        self.check(exact=False)
        self.load(params)
        for request, row in zip(requests, out, strict=True):
            own = request.purpose is Purpose.TRAIN
            buffers = self._buffers.get(request.peer, self.initial) if own else self.initial
            size, poisoned = self.samples(workers), request.flip_labels
            loss, moved = self.compute(request.seed, row, buffers, size=size, poisoned=poisoned, too_late=too_late)
            if own:
                self.loss = self.losses[request.peer] = loss
                self._buffers[request.peer] = moved

    def public_losses(self, params: Tensor, seed: bytes) -> Tensor:
        """The losses of 16 small public batches drawn with `seed` at `params` [d]: [16] float64 on the CPU.

        As in training, with the same dropout for all states that are compared, and without anybody's own buffers.
        """
        self.load(params)
        size, losses = min(self.batch_size, GROUP), []
        for group in range(GROUPS):
            self.put(self.initial)
            with seeded(self.device, "public losses", self.seed, seed, group):
                batch = self.batch(digest("public batch", seed, group), size)
                losses.append(float(self.loss_function(self._copy, batch).detach()))
        self.put(self.initial)
        return torch.tensor(losses, dtype=torch.float64)

    # What a swarm asks for besides (`btard.swarm.task.Training`).

    def samples(self, workers: int) -> int:
        """Examples that each of `workers` peers computes in a step."""
        return self.batch_size

    def agreed(self) -> dict[str, str]:
        """Digests of what all peers must share in addition to the trained parameters: model, frozen parameters, data.

        The model is looked at by the names and shapes of its parameters; the data by their number and some samples.
        """
        named = [(name, x) for name, x in self._copy.named_parameters()]
        shapes = [f"{name} {tuple(x.shape)} {x.dtype} {x.requires_grad}" for name, x in named]
        constant = [tensor_digest(x, name) for name, x in named if not x.requires_grad]
        constant += [tensor_digest(x, name) for name, x in self.initial.items()]
        return {
            "model": digest("model", *shapes, *constant).hex(),
            "data": self._data_digest().hex(),
            "batches": f"{self.batch_size} samples, seed {self.seed}",
        }

    def layout(self) -> list[Slot]:
        """Where each tensor of the model's state lies in the vector or beside it, for `python -m btard.export`."""
        return state_layout(self._copy)

    def kept(self, peer: int | None = None) -> dict[str, Tensor]:
        """What lies beside it: frozen parameters, and buffers as they were at the start, or those of `peer`."""
        self.put({**self.initial, **self._buffers.get(-1 if peer is None else peer, {})})
        found = kept(self._copy)
        self.put(self.initial)
        return found

    def _data_digest(self) -> bytes:
        size = len(self.data)
        drawn = stream("data digest", self.seed).choice(size, min(size, LOOKED_AT), replace=False)
        with seeded(self.device, "data digest", self.seed):
            found = [data_digest(self.data[int(index)]) for index in drawn]
        return digest("data", size, *found)

    # Each peer's own buffers.

    def local_state(self) -> dict[str, Tensor]:
        """The moving buffers of all peers that have computed here, by name; later gradients do not change them."""
        return {f"{LOCAL}/{i}/{name}": x for i, own in self._buffers.items() for name, x in own.items()}

    def load_local_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `local_state` returned, from among other tensors."""
        self._buffers = {}
        for key, tensor in tensors.items():
            kind, _, rest = key.partition("/")
            if kind == LOCAL:
                peer, _, name = rest.partition("/")
                self._buffers.setdefault(int(peer), {})[name] = tensor.clone()

    def write_buffers(self, peer: int) -> None:
        """Copy the buffers of `peer` into the original model, to evaluate it as this peer."""
        into = dict(self.model.named_buffers())
        for name, buffer in self._buffers.get(peer, {}).items():
            into[name].copy_(buffer)

    # How a gradient comes about.

    def check(self, *, exact: bool = True) -> None:
        """Compute one gradient twice, and check everything that may be wrong with it; only once.

        `exact`: both have to be equal to the bit, as peers demand of each other with `validation="exact"`. On a GPU
        this process then uses deterministic kernels and no TF32.
        Errors: ValueError, in one line that names the cause.
        """
        if not self._checked & {exact, True}:
            self._checked.add(exact)
            if exact:
                choose_exact_kernels(self.device)
            self.moving = check_task(self, exact=exact)
            self._buffers, self.losses, self.loss = {}, {}, math.nan
            self.put(self.initial)

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


def function_name(function: str | Callable[..., Any]) -> str:
    """Return module:function, as others can import it; of the program that was started by its file's name.

    Raises ValueError for a function that has no such name.
    """
    if isinstance(function, str):
        return function
    name, place = function.__qualname__, sys.modules.get(function.__module__)
    spec, file = getattr(place, "__spec__", None), getattr(place, "__file__", None)
    module = spec.name if spec is not None else Path(file or "").stem
    if not module or not name.isidentifier():
        raise ValueError(f"made_by must be a function of a module, got {module or 'none'}:{name}: put it into a file")
    return f"{module}:{name}"


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
