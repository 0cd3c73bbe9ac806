"""A network whose parameters lie in one vector [d], which is what peers train."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def parameter_count(model: nn.Module) -> int:
    """Return d, the number of the model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def flatten(model: nn.Module) -> Tensor:
    """Return a copy of all parameters as one contiguous vector [d], in the order of `views`, of their dtype."""
    parameters = list(model.parameters())
    flat = torch.empty(parameter_count(model), dtype=parameters[0].dtype, device=parameters[0].device)
    with torch.no_grad():
        for view, parameter in zip(views(model, flat), parameters, strict=True):
            view.copy_(parameter)
    return flat


def bind(model: nn.Module, flat: Tensor) -> None:
    """Make every parameter of `model` a view into `flat` [d]: whoever writes to `flat` moves the model.

    Nothing is copied. Raises ValueError unless `flat` is contiguous and of the model's size, device and dtype.
    """
    parameters = list(model.parameters())
    size, device, dtype = parameter_count(model), parameters[0].device, parameters[0].dtype
    if (tuple(flat.shape), flat.device, flat.dtype) != ((size,), device, dtype) or not flat.is_contiguous():
        raise ValueError(
            f"expected a contiguous parameter vector ({size},) of {dtype} on {device}, got {tuple(flat.shape)} with "
            f"strides {flat.stride()} of {flat.dtype} on {flat.device}"
        )
    for parameter, view in zip(parameters, views(model, flat), strict=True):
        parameter.data = view


def views(model: nn.Module, flat: Tensor) -> Iterator[Tensor]:
    """Yield the parts of `flat` [..., d] as [..., *shape] for the parameters of `model`, in order, without copying.

    The weight of a convolution lies in `flat` as [out, height, width, in], which is torch's channels_last format: on
    CPUs the convolutions are faster in it, and no copy is needed between the vector and the network.
    """
    start = 0
    for parameter in model.parameters():
        part = flat[..., start : start + parameter.numel()]
        start += parameter.numel()
        if parameter.dim() == 4:
            outputs, inputs, height, width = parameter.shape
            yield part.unflatten(-1, (outputs, height, width, inputs)).movedim(-1, -3)
        else:
            yield part.unflatten(-1, parameter.shape)
