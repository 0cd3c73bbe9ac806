"""The image classification task as the drivers see it: gradients of public batches, and each peer's own BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from btard.protocol.effects import Compute, Purpose
from btard.training.vector import parameter_count
from resnet.batchnorm import RunningStatistics
from resnet.gradients import CohortGradients, Mode
from resnet.sampling import TrainingData, draw_batches

MEASURED = 512
"""Number of samples by which two states are compared."""


class ClassificationTask:
    """`btard.task.Task` for a network of `resnet.model` on `data`, `batch_size` samples per peer.

    `losses` [n] holds each peer's latest training loss, `statistics` its running BatchNorm statistics; both are the
    peers' own affair and never part of a gradient. `tensors`: the sizes of the model's tensors, in a gradient's order.
    """

    def __init__(self, model: nn.Module, data: TrainingData, *, peers: int, batch_size: int, mode: Mode) -> None:
        self.d = parameter_count(model)
        self.tensors = tuple(parameter.numel() for parameter in model.parameters())
        self.data, self.batch_size = data, batch_size
        self.compute = CohortGradients(model, mode=mode)
        self.statistics = RunningStatistics(model, peers)
        self.losses = torch.zeros(peers, device=data.labels.device)

    def gradients(self, params: Tensor, requests: Sequence[Compute], out: Tensor, **_: Any) -> None:
        """Write the gradients of `requests` at `params` [d] into the rows of `out` [r, d]."""
        images, labels = draw_batches(
            self.data,
            [request.seed for request in requests],
            self.batch_size,
            flip_labels=[request.flip_labels for request in requests],
        )
        result = self.compute(params, images, labels, out)
        # A validator recomputes somebody else's batch: that must not move anybody's running statistics.
        own = [row for row, request in enumerate(requests) if request.purpose is Purpose.TRAIN]
        newest = max((requests[row].peer for row in own), default=0)
        if newest >= len(self.losses):
            raise ValueError(
                f"peer {newest} has no running statistics, the task was made for {len(self.losses)} peers: give it as "
                "many as may ever take part, those that join later included"
            )
        if own:
            peers = [requests[row].peer for row in own]
            self.statistics.update(peers, result.statistics.rows(own))
            self.losses[peers] = result.losses[own]

    def public_losses(self, params: Tensor, seed: bytes) -> Tensor:
        """The cross-entropy of each of `MEASURED` training samples, or of all, at `params` [d]: float64 on the CPU."""
        images, labels = draw_batches(self.data, [seed], min(MEASURED, len(self.data)))
        return self.compute.losses(params, images[0], labels[0]).double().cpu()
