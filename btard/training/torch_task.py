"""A PyTorch module as a task: gradients of public batches, which anybody can recompute to the bit."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from btard.protocol.effects import Compute, Purpose
from btard.protocol.hashing import digest, stream, tensor_digest
from btard.task import never
from btard.training.contents import data_digest
from btard.training.gradients import Gradients, Loss
from btard.training.kernels import choose_exact_kernels
from btard.training.layout import LOCAL, Slot, kept, state_layout
from btard.training.randomness import seeded
from btard.training.trial import check_gradient

GROUPS, GROUP = 16, 32
"""States are compared by the losses of this many small batches, of at most this many examples each."""
LOOKED_AT = 32
"""Number of samples by which peers compare their data sets."""


class TorchTask(Gradients):
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
        super().__init__(
            model, loss, data, batch_size, collate=collate, poison=poison, micro_batch=micro_batch, seed=seed
        )
        self.made_by = function_name(made_by) or type(self).made_by
        self.loss: float = math.nan
        """Loss of the latest gradient that was computed for training; NaN before."""
        self.first_loss: float = math.nan
        """Loss of the gradient that `check` computed; NaN before."""
        self.losses: dict[int, float] = {}
        """Peer -> loss of the latest gradient that it computed for training."""
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
                losses.append(float(self.loss_function(self.module, batch).detach()))
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
        named = [(name, x) for name, x in self.module.named_parameters()]
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
        return state_layout(self.module)

    def kept(self, peer: int | None = None) -> dict[str, Tensor]:
        """What lies beside it: frozen parameters, and buffers as they were at the start, or those of `peer`."""
        self.put({**self.initial, **self._buffers.get(-1 if peer is None else peer, {})})
        found = kept(self.module)
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
            self.moving, self.first_loss = check_gradient(self, exact=exact)
            self._buffers, self.losses, self.loss = {}, {}, math.nan
            self.put(self.initial)


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
