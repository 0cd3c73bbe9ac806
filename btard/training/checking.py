"""Checks, at the start and in one line each, of what peers cannot train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from btard.protocol.hashing import digest, tensor_digest
from btard.training.contents import data_digest
from btard.training.randomness import seeded
from btard.training.vector import flatten, trained

if TYPE_CHECKING:
    from btard.training.torch_task import TorchTask


def check_model(model: Any) -> None:
    """Raise TypeError or ValueError unless `model` is a module whose trained parameters fit into one vector."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    named = [(name, x) for name, x in model.named_parameters() if x.requires_grad]
    if not named:
        raise ValueError("the model has no parameter to train: all are frozen; set requires_grad on some")
    first = named[0][1]
    for name, parameter in named:
        if isinstance(parameter, nn.UninitializedParameter):
            raise ValueError(f"parameter {name} has no shape yet: run the model once on a batch before")
        if parameter.dtype != torch.float32:
            raise ValueError(
                f"parameter {name} is {parameter.dtype}, peers exchange float32: use model.float(), and autocast in "
                "the loss for half precision"
            )
        if parameter.device != first.device:
            raise ValueError(f"parameters are on {first.device} and {parameter.device}: put the model on one device")


def check_data(data: Any, batch_size: Any, loader: type) -> None:
    """Raise TypeError or ValueError unless batches of `batch_size` can be drawn from `data` by their indices."""
    if isinstance(data, loader):
        raise TypeError("data must be a dataset, got a DataLoader: give its .dataset, for peers draw by public seeds")
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise TypeError(
            f"data must be a dataset with a length and an index, got {type(data).__name__}: a stream has no sample "
            "that others could look up"
        )
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= len(data):
        raise ValueError(f"batch_size must be between 1 and the {len(data)} samples of the data, got {batch_size!r}")


def check_peers(d: int, peers: int) -> None:
    """Raise ValueError if the vector has no part for each peer."""
    if d < peers:
        raise ValueError(
            f"the model has {d} trained parameters, fewer than the {peers} peers, each of which aggregates a part of "
            "them: use fewer peers or a larger model"
        )


def check_task(task: TorchTask, *, exact: bool) -> tuple[str, ...]:
    """Compute a gradient of the task, with `exact` twice; returns the names of the buffers that this changes.

    Errors: ValueError for what `TorchTask.check` promises to find.
    """
    flat, seed = flatten(task.model), digest("check", task.seed)
    task.load(flat)
    _check_loss(task, seed)
    rows = torch.empty(2, task.d, device=flat.device)
    before = {name: x.clone() for name, x in task.initial.items()}
    _, after = task.compute(seed, rows[0], before)
    moving = tuple(name for name in before if not _equal(before[name], after[name]))
    if not exact:
        return moving
    task.compute(seed, rows[1], after)
    if not _equal(rows[0], rows[1]):
        raise ValueError(_why_different(task, seed, rows[0], moving))
    return moving


def _check_loss(task: TorchTask, seed: bytes) -> None:
    """Check what the loss returns, and the gradients as torch computes them."""
    task.put(task.initial)
    with torch.enable_grad(), seeded(task.device, "gradient", task.seed, seed, 0):
        loss: Any = task.loss_function(task.module, task.batch(seed, task.batch_size, stop=task.micro_batch))
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss(model, batch) must return a tensor with one number, got {type(loss).__name__}")
        if loss.numel() != 1:
            shape = list(loss.shape)
            raise ValueError(f"loss(model, batch) must return one number, got shape {shape}: take its .mean()")
        reaches = [loss.requires_grad]
        if loss.requires_grad:
            loss.sum().backward()
            reaches = [parameter.grad is not None for parameter in trained(task.module)]
    sparse = [
        name for name, x in task.module.named_parameters() if x.grad is not None and x.grad.layout != torch.strided
    ]
    for parameter in trained(task.module):
        parameter.grad = None
    if not any(reaches):
        raise ValueError(
            "the loss does not depend on the parameters of the model that loss(model, batch) is given: use this model "
            "in it, for peers compute on copies"
        )
    if sparse:
        raise ValueError(f"the gradient of {sparse[0]} is sparse, peers exchange dense vectors: set sparse=False there")


def _why_different(task: TorchTask, seed: bytes, row: Tensor, moving: tuple[str, ...]) -> str:
    """What a gradient depends on besides its request, as far as this can be found out."""
    again = torch.empty_like(row)
    task.compute(seed, again, task.initial)
    if _equal(row, again):
        return (
            f"the gradient depends on buffers that training moves ({', '.join(moving[:3])}), each peer's own; "
            "a validator would compute another one: use a module whose buffers do not matter in training"
        )
    batches = []
    for _ in range(2):
        with seeded(task.device, "gradient", task.seed, seed, 0):
            batches.append(data_digest(task.batch(seed, task.batch_size)))
    if batches[0] != batches[1]:
        return (
            "other data come from the same request when it is computed again: draw random numbers in the dataset and "
            "in collate from torch, random or numpy's global generator, which follow the public seed"
        )
    return (
        "the same request computed twice gives different gradients, so peers could not check each other: draw random "
        "numbers in the model from torch's own generator, use torch.use_deterministic_algorithms(True) on a GPU, or "
        "validation tolerant"
    )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether both are equal to the bit, as hashes are compared."""
    return tensor_digest(one) == tensor_digest(other)
