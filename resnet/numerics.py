"""The same gradients, computed as on different machines: threads, memory layout, precision, device, batching.

For measuring how far honest peers can be apart (`resnet.calibrate`), and as a `Task` for a peer of a mixed cohort.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btard.protocol.effects import Compute
from btard.training.vector import flatten, parameter_count, views
from resnet.batchnorm import Statistics, statistics_size
from resnet.data import Dataset
from resnet.folded import FoldedNetwork
from resnet.gradients import CohortGradients
from resnet.sampling import TrainingData, requested_batches

Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True)
class Numerics:
    """One way of computing a gradient."""

    name: str
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Precision = "float32"
    threads: int = 1
    """Kernel threads, on a CPU."""
    way: Literal["per_peer", "folded", "plain"] = "plain"
    """per_peer and folded are those of `resnet.gradients`, plain is autograd on one peer's batch."""
    channels_last: bool = True
    """Memory layout of plain."""


def numerics_here() -> tuple[list[Numerics], dict[str, str]]:
    """Return the ways in which this machine can compute, and the others: name -> reason. The first one is per_peer."""
    cores = os.cpu_count() or 1
    found = [
        Numerics("CPU, one peer at a time", way="per_peer"),
        Numerics("CPU, folded", way="folded"),
        Numerics("CPU, contiguous", channels_last=False),
        *(Numerics(f"CPU, {count} threads", threads=count) for count in (2, 4, 8, 16) if count <= cores),
        Numerics("CPU, bfloat16", precision="bfloat16"),
    ]
    missing = {} if cores > 1 else {"CPU, 2 threads": "there is one core"}
    cuda = [
        Numerics("CUDA, float32", device="cuda"),
        Numerics("CUDA, folded", device="cuda", way="folded"),
        Numerics("CUDA, TF32", device="cuda", precision="tf32"),
        Numerics("CUDA, bfloat16", device="cuda", precision="bfloat16"),
    ]
    if torch.cuda.is_available():
        return found + cuda, missing
    return found, missing | {numerics.name: "there is no CUDA device" for numerics in cuda}


class NumericTask:
    """`btard.task.Task`: `batch_size` samples of `data` per request, computed by `numerics`.

    `model` gives the architecture. Parameters and gradients may live on another device than the computation.
    """

    def __init__(self, model: nn.Module, data: Dataset, batch_size: int, numerics: Numerics) -> None:
        device = torch.device(numerics.device)
        self.d, self.batch_size, self.numerics, self.device = parameter_count(model), batch_size, numerics, device
        self.data = TrainingData(data, device)
        self.layout = copy.deepcopy(model).to(device)
        self.model = copy.deepcopy(model).to(device).train().requires_grad_(True)
        if numerics.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.flat = flatten(self.layout)
        self.folded = FoldedNetwork(self.layout, self.flat) if numerics.way == "folded" else None
        self.cohort = CohortGradients(self.layout, mode="per_peer", workers=1) if numerics.way == "per_peer" else None

    def gradients(self, params: Tensor, requests: Sequence[Compute], out: Tensor, **_: Any) -> None:
        """Write the gradients of `requests` at `params` [d] into the rows of `out` [r, d]."""
        images, labels = requested_batches(self.data, requests, self.batch_size)
        params = params.to(self.device)
        rows = torch.empty(len(requests), self.d, device=self.device)
        with _settings(self.numerics):
            if self.cohort is not None:
                self.cohort(params, images, labels, rows)
            elif self.folded is not None:
                self.flat.copy_(params)
                losses, size = rows.new_empty(len(rows)), statistics_size(self.layout)
                statistics = Statistics(*(rows.new_empty(len(rows), size) for _ in range(2)))
                self.folded.compute(images, labels, rows, losses, statistics)
            else:
                self._plain(params, images, labels, rows)
        out.copy_(rows)

    def _plain(self, params: Tensor, images: Tensor, labels: Tensor, rows: Tensor) -> None:
        parameters = list(self.model.parameters())
        with torch.no_grad():
            for parameter, value in zip(parameters, views(self.layout, params), strict=True):
                parameter.copy_(value)
        layout = torch.channels_last if self.numerics.channels_last else torch.contiguous_format
        low = self.numerics.precision == "bfloat16"
        for row, samples, target in zip(rows, images, labels, strict=True):
            with torch.enable_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                loss = F.cross_entropy(self.model(samples.contiguous(memory_format=layout)), target)
            gradients = torch.autograd.grad(loss, parameters)
            for view, gradient in zip(views(self.layout, row), gradients, strict=True):
                view.copy_(gradient)


@contextmanager
def _settings(numerics: Numerics) -> Iterator[None]:
    """Torch's global settings for `numerics`, and back. Without it torch allows TF32 in convolutions by default."""
    tf32 = numerics.precision == "tf32"
    before = torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.set_num_threads(numerics.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[1:]
