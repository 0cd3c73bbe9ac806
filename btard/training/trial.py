"""One gradient computed on trial, before the first step: it shows what a look at the model and the data cannot."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from btard.protocol.hashing import digest, tensor_digest
from btard.training.contents import data_digest
from btard.training.gradients import Gradients
from btard.training.randomness import seeded
from btard.training.vector import flatten, trained


def check_gradient(task: Gradients, *, exact: bool) -> tuple[tuple[str, ...], float]:
    """Compute a gradient of the task, with `exact` twice; returns the names of the buffers that this changes, the loss.

    Errors: ValueError for what `TorchTask.check` promises to find.
    """
    flat, seed = flatten(task.model), digest("check", task.seed)
    task.load(flat)
    _check_loss(task, seed)
    rows = torch.empty(2, task.d, device=flat.device)
    before = {name: x.clone() for name, x in task.initial.items()}
    first, after = task.compute(seed, rows[0], before)
    moving = tuple(name for name in before if not _equal(before[name], after[name]))
    if not exact:
        return moving, first
    task.compute(seed, rows[1], after)
    if not _equal(rows[0], rows[1]):
        raise ValueError(_why_different(task, seed, rows[0], moving))
    return moving, first


def _check_loss(task: Gradients, seed: bytes) -> None:
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


def _why_different(task: Gradients, seed: bytes, row: Tensor, moving: tuple[str, ...]) -> str:
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
