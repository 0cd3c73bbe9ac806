"""Batch normalisation statistics per peer: every peer normalises by its own samples and keeps its own running values.

In this project's networks all batch normalisations together have S features; their statistics are kept side by side in
vectors [S], in the order of `model.modules()`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from btard.training.layout import Slot

MOMENTUM = 0.1


@dataclass(frozen=True)
class Statistics:
    """Statistics of every feature for P peers: means [P, S] and unbiased variances [P, S]."""

    means: Tensor
    variances: Tensor

    def rows(self, index: Sequence[int]) -> "Statistics":
        """Return the statistics of the peers in rows `index`."""
        return Statistics(self.means[index], self.variances[index])

    def zero_(self) -> None:
        """Forget everything. Necessary before a layer with momentum 1 writes: 0 * NaN would stay NaN."""
        self.means.zero_()
        self.variances.zero_()


def norm_layers(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the batch normalisations of `model` in the order of `model.modules()`."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def statistics_slots(model: nn.Module) -> list[Slot]:
    """Return where a peer's running means and variances lie in a checkpoint, by their names in `model`."""
    slots, start = [], 0
    for name, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            for buffer, source in (("running_mean", "means"), ("running_var", "variances")):
                slots.append(Slot(f"{name}.{buffer}", (layer.num_features,), (1,), start, source=source, per_peer=True))
            start += layer.num_features
    return slots


def statistics_size(model: nn.Module) -> int:
    """Return S, the number of features over all batch normalisations of `model`."""
    return sum(layer.num_features for layer in norm_layers(model))


def bind_statistics(model: nn.Module) -> Statistics:
    """Let each training forward of `model` write its batch statistics into the returned tensors [1, S].

    The running statistics become views of these tensors and the momentum 1, so that torch's own update leaves the
    values of the last batch there. Call `zero_` before each forward.
    """
    layers = norm_layers(model)
    reference = next(model.parameters())
    statistics = Statistics(*(reference.new_zeros(1, statistics_size(model)) for _ in range(2)))
    start = 0
    for layer in layers:
        stop = start + layer.num_features
        layer.running_mean = statistics.means[0, start:stop]
        layer.running_var = statistics.variances[0, start:stop]
        layer.momentum = 1.0
        start = stop
    return statistics


class RunningStatistics:
    """The running means and variances of n peers, as torch's BatchNorm2d keeps them: start at 0 and 1, momentum 0.1."""

    def __init__(self, model: nn.Module, peers: int) -> None:
        reference = next(model.parameters())
        size = statistics_size(model)
        self.means = reference.detach().new_zeros(peers, size)
        self.variances = reference.detach().new_ones(peers, size)

    def update(self, peers: Sequence[int], batch: Statistics) -> None:
        """Move the running values of `peers` (P distinct indices) towards their batch's values, row by row."""
        if len(peers) != len(batch.means):
            raise ValueError(f"expected statistics of {len(peers)} peers, got {len(batch.means)} rows")
        index = torch.as_tensor(list(peers), dtype=torch.int64, device=self.means.device)
        for running, new in ((self.means, batch.means), (self.variances, batch.variances)):
            running[index] = running[index].lerp_(new, MOMENTUM)

    def load_into(self, model: nn.Module, peer: int) -> None:
        """Copy a peer's running statistics into the batch normalisations of `model`, to evaluate it as this peer."""
        start = 0
        for layer in norm_layers(model):
            stop = start + layer.num_features
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.copy_(self.means[peer, start:stop])
            layer.running_var.copy_(self.variances[peer, start:stop])
            start = stop

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint: `means` and `variances`, [n, S] each, not copied."""
        return {"means": self.means, "variances": self.variances}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state that `state_dict` returned. Raises ValueError if a tensor is missing or of another shape."""
        for name, own in self.state_dict().items():
            given = state.get(name)
            if given is None or given.shape != own.shape:
                got = "nothing" if given is None else tuple(given.shape)
                raise ValueError(f"expected batch norm {name} of shape {tuple(own.shape)}, got {got}")
            own.copy_(given)
