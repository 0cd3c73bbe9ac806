"""A network whose trained parameters lie in one vector [d], which is what peers train. Frozen ones are left out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def trained(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained, in the model's order: those with `requires_grad`."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def parameter_count(model: nn.Module) -> int:
    """Return d, the number of the model's trained parameters."""
    return sum(parameter.numel() for parameter in trained(model))


def flatten(model: nn.Module) -> Tensor:
    """Return a copy of the trained parameters as one contiguous vector [d], in the order of `views`, of their dtype."""
    parameters = trained(model)
    flat = torch.empty(parameter_count(model), dtype=parameters[0].dtype, device=parameters[0].device)
    with torch.no_grad():
        for view, parameter in zip(views(model, flat), parameters, strict=True):
            view.copy_(parameter)
    return flat


def bind(model: nn.Module, flat: Tensor) -> None:
    """Make every trained parameter of `model` a view into `flat` [d]: writing to `flat` changes the model.

    Nothing is copied. Raises ValueError unless `flat` is contiguous and of the model's size, device and dtype.
    """
    parameters = trained(model)
    size, device, dtype = parameter_count(model), parameters[0].device, parameters[0].dtype
    if (tuple(flat.shape), flat.device, flat.dtype) != ((size,), device, dtype) or not flat.is_contiguous():
        raise ValueError(
            f"expected a contiguous parameter vector ({size},) of {dtype} on {device}, got {tuple(flat.shape)} with "
            f"strides {flat.stride()} of {flat.dtype} on {flat.device}"
        )
    for parameter, view in zip(parameters, views(model, flat), strict=True):
        parameter.data = view


def write(model: nn.Module, flat: Tensor) -> None:
    """Copy `flat` [d] into the trained parameters of `model`, wherever they lie."""
    with torch.no_grad():
        for parameter, view in zip(trained(model), views(model, flat), strict=True):
            parameter.copy_(view)


def unbind(model: nn.Module) -> None:
    """Give every trained parameter of `model` its own memory again, contiguous, with its present values."""
    for parameter in trained(model):
        parameter.data = parameter.detach().clone(memory_format=torch.contiguous_format)


def views(model: nn.Module, flat: Tensor) -> Iterator[Tensor]:
    """Yield the parts of `flat` [..., d] as [..., *shape] for the trained parameters, in order, without copying."""
    start = 0
    for parameter in trained(model):
        part = flat[..., start : start + parameter.numel()]
        start += parameter.numel()
        yield shaped(part, parameter.shape)


def shaped(part: Tensor, shape: torch.Size) -> Tensor:
    """Return `part` [..., n] as [..., *shape], without copying.

    The weight of a convolution lies in it as [out, height, width, in], which is torch's channels_last format: on CPUs
    the convolutions are faster in it, and no copy is needed between the vector and the network.
    """
    if len(shape) != 4:
        return part.unflatten(-1, shape) if len(shape) else part.squeeze(-1)
    outputs, inputs, height, width = shape
    return part.unflatten(-1, (outputs, height, width, inputs)).movedim(-1, -3)
