"""Checks, at the start and in one line each, of a model and data that peers cannot train."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import nn


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
    if isinstance(data, (Mapping, tuple)):
        raise TypeError(
            f"data must be a dataset of samples, got {type(data).__name__}: give tensors of inputs and labels as "
            "torch.utils.data.TensorDataset(inputs, labels), and samples as a list"
        )
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise TypeError(
            f"data must be a dataset with a length and an index, got {type(data).__name__}: a stream has no sample "
            "that others could look up"
        )
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or not 1 <= batch_size <= len(data):
        raise ValueError(f"batch_size must be between 1 and the {len(data)} samples of the data, got {batch_size!r}")


def check_whole(name: str, value: Any, least: int | None = None) -> None:
    """Raise ValueError unless `value` is a whole number, and at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or (least is not None and value < least):
        bound = "" if least is None else f" >= {least}"
        raise ValueError(f"{name} must be a whole number{bound}, got {value!r}")


def check_peers(d: int, peers: int) -> None:
    """Raise ValueError if the vector has no part for each peer."""
    if d < peers:
        raise ValueError(
            f"the model has {d} trained parameters, fewer than the {peers} peers, each of which aggregates a part of "
            "them: use fewer peers or a larger model"
        )
