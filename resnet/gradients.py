"""The gradients of a whole cohort of peers at one parameter vector: a row per peer.

Every peer normalises by its own samples only, so the cohort is not one large batch. Two strategies compute the same
numbers (to rounding):

- a peer at a time, the peers spread over threads with one kernel thread each. On CPUs and images of 32x32 it takes
  about as long as the plain large-batch step, which gives no gradients per peer: one peer's activations fit the cache,
  and no kernel waits for another thread (`results/benchmark/`).
- folded (`resnet.folded`): all samples through the shared weights at once, weight gradients per peer. For
  accelerators, and for networks so small that the time goes into launching operations.
"""

import copy
import queue
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from btard.drivers.threads import Team
from btard.training.vector import bind, flatten, views
from resnet.batchnorm import Statistics, bind_statistics, statistics_size
from resnet.folded import FoldedNetwork

Mode = Literal["per_peer", "batched"]

FOLDED_BELOW = 2**15
"""Activations of one peer behind the stem (samples * channels * height * width) below which a CPU is faster folded."""


@dataclass(frozen=True)
class CohortResult:
    """The results of the P peers of one call."""

    gradients: Tensor
    """[P, d]: row p is the gradient of peer p's mean cross-entropy; the caller's `out` if one was given."""
    losses: Tensor
    """[P]: the mean cross-entropy of each peer's samples."""
    statistics: Statistics
    """The batch statistics of every batch normalisation, for the peers' running statistics."""


class CohortGradients:
    """Computes the gradients of many peers at once, for a network of convolutions, batch norms and linear layers.

    `model` gives the architecture, dtype and device; its values are not used, and it is not changed. The modes:

    `per_peer`: a row is a function of the parameters and this peer's samples alone, bit for bit: the same whichever
    peers share the call, in whatever order, with however many workers, and in another process on the same machine.
    On the CPU every peer is computed with one kernel thread.

    `batched`: the fastest way. Rows agree with `per_peer` to rounding; which other peers are in the call may change
    their last bits. Rounding is not always small: in float32 most rows of a ResNet-18 agree to a relative 1e-5, but
    a ReLU whose input is within rounding of zero may open in one way of computing and stay shut in the other, and a
    row in which that happens differs by up to about 1e-2 of its norm. In float64 they agree to 1e-12.

    `workers` is the number of peers computed at the same time on a CPU, by default torch's number of threads.
    """

    def __init__(self, model: nn.Module, *, mode: Mode = "per_peer", workers: int | None = None) -> None:
        if mode not in ("per_peer", "batched"):
            raise ValueError(f"mode must be per_peer or batched, got {mode!r}")
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.mode = mode
        # One parameter vector of our own: aligned alike in every process, so kernels round alike.
        self._flat = flatten(model)
        self._model = copy.deepcopy(model)
        self._features = statistics_size(model)
        self._stem_channels = next(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
        self._workers = (workers or torch.get_num_threads()) if self._flat.device.type == "cpu" else 1
        self._network: FoldedNetwork | None = None
        self._team: _Team | None = None
        self._measured: _Replica | None = None

    def __call__(self, params: Tensor, images: Tensor, labels: Tensor, out: Tensor | None = None) -> CohortResult:
        """Return the gradients of P peers at `params` [d] on their own samples.

        images: [P, B, C, H, W], already normalised, of the model's dtype and device; labels: [P, B] int64; out: where
        to write the gradients, [P, d] with contiguous rows (pass the same one in every step: a fresh one costs a page
        fault per 4 KiB). Non-finite values pass through as the network computes them. Raises ValueError if shapes,
        dtypes or devices do not fit. Calls of one object must not overlap.
        """
        out = self._checked(params, images, labels, out)
        self._flat.copy_(params)
        peers = len(images)
        losses = out.new_empty(peers)
        statistics = Statistics(out.new_empty(peers, self._features), out.new_empty(peers, self._features))
        result = CohortResult(out, losses, statistics)
        if self.strategy(images) == "folded":
            self._network = self._network or FoldedNetwork(self._model, self._flat)
            self._network.compute(images, labels, out, losses, statistics)
        else:
            self._team = self._team or _Team(self._model, self._flat, self._workers)
            self._team.compute(images, labels, result)
        return result

    @torch.no_grad()
    def losses(self, params: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of each sample [B] at `params` [d].

        images [B, C, H, W] and labels [B] are one batch: the samples are normalised by the batch's own statistics, as
        in training, and leave no trace in any others.
        """
        self._flat.copy_(params)
        self._measured = self._measured or _Replica(self._model, self._flat)
        logits = self._measured.model(images.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits, labels, reduction="none")

    def strategy(self, images: Tensor) -> Literal["threads", "folded"]:
        """Return how images [P, B, C, H, W] are computed: a peer at a time over threads, or all peers folded."""
        if self.mode == "per_peer":
            return "threads"
        work = images[0, :, 0].numel() * self._stem_channels
        return "folded" if self._flat.is_cuda or work < FOLDED_BELOW else "threads"

    def close(self) -> None:
        """End the worker threads. Without it they end with this object."""
        if self._team is not None:
            self._team.close()
            self._team = None

    def _checked(self, params: Tensor, images: Tensor, labels: Tensor, out: Tensor | None) -> Tensor:
        flat = self._flat
        if params.shape != flat.shape or params.dtype != flat.dtype:
            raise ValueError(
                f"expected parameters {tuple(flat.shape)} of {flat.dtype}, got {tuple(params.shape)} of {params.dtype}"
            )
        if images.dim() != 5 or not len(images) or images.dtype != flat.dtype or images.device != flat.device:
            raise ValueError(
                f"expected images [P >= 1, B, C, H, W] of {flat.dtype} on {flat.device}, got {tuple(images.shape)} of "
                f"{images.dtype} on {images.device}"
            )
        if labels.shape != images.shape[:2] or labels.dtype != torch.int64 or labels.device != flat.device:
            raise ValueError(
                f"expected labels {tuple(images.shape[:2])} of int64 on {flat.device}, got {tuple(labels.shape)} of "
                f"{labels.dtype} on {labels.device}"
            )
        shape = (len(images), flat.numel())
        if out is None:
            return torch.empty(shape, dtype=flat.dtype, device=flat.device)
        if out.shape != shape or out.dtype != flat.dtype or out.device != flat.device or out.stride(1) != 1:
            raise ValueError(
                f"expected out {shape} of {flat.dtype} on {flat.device} with contiguous rows, got {tuple(out.shape)} "
                f"of {out.dtype} on {out.device} with strides {out.stride()}"
            )
        return out


class _Replica:
    """A copy of the network for one worker; all share the parameters, each has its own batch statistics."""

    def __init__(self, model: nn.Module, flat: Tensor) -> None:
        self.model = copy.deepcopy(model).train().requires_grad_(True)
        bind(self.model, flat)
        self.statistics = bind_statistics(self.model)
        self.parameters = list(self.model.parameters())

    def compute(self, peer: int, images: Tensor, labels: Tensor, result: CohortResult) -> None:
        self.statistics.zero_()
        # channels_last: the convolutions are faster in it on CPUs, see `btard.training.vector.views`.
        samples = images[peer].contiguous(memory_format=torch.channels_last)
        with torch.enable_grad():
            loss = F.cross_entropy(self.model(samples), labels[peer])
            gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            torch._foreach_copy_(list(views(self.model, result.gradients[peer])), list(gradients))
            result.losses[peer] = loss
            result.statistics.means[peer] = self.statistics.means[0]
            result.statistics.variances[peer] = self.statistics.variances[0]


class _Team:
    """Replicas that take the peers of a call from one queue, each in its own thread with one kernel thread."""

    def __init__(self, model: nn.Module, flat: Tensor, workers: int) -> None:
        self._replicas = [_Replica(model, flat) for _ in range(workers)]
        self._threads = Team(workers) if flat.device.type == "cpu" else None

    def compute(self, images: Tensor, labels: Tensor, result: CohortResult) -> None:
        peers: queue.SimpleQueue[int] = queue.SimpleQueue()
        for peer in range(len(images)):
            peers.put(peer)

        def work(replica: _Replica) -> None:
            while True:
                try:
                    peer = peers.get_nowait()
                except queue.Empty:
                    return
                replica.compute(peer, images, labels, result)

        if self._threads is None:
            work(self._replicas[0])
        else:
            self._threads.map(work, self._replicas[: len(images)])

    def close(self) -> None:
        if self._threads is not None:
            self._threads.close()
