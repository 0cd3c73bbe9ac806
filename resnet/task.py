"""Image classification as `btard.TorchTask`, with the gradients of several peers computed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from btard.protocol.effects import Compute, Purpose
from btard.training.layout import Slot, layout_of
from btard.training.torch_task import TorchTask
from resnet.batchnorm import RunningStatistics, statistics_slots
from resnet.gradients import CohortGradients, Mode
from resnet.sampling import TrainingData, draw_batches, requested_batches

MEASURED = 512
"""Number of samples by which two states are compared."""

Batch = tuple[Tensor, Tensor]


class ClassificationTask(TorchTask):
    """The cross-entropy of a network of `resnet.model` on `data`, `batch_size` samples for each of up to `peers` peers.

    Batches are those of `resnet.sampling`, gradients those of `resnet.gradients` in this `mode`. `statistics` has the
    peers' running BatchNorm statistics side by side, as a step moves those of all peers at once.
    """

    data: TrainingData

    def __init__(self, model: nn.Module, data: TrainingData, *, peers: int, batch_size: int, mode: Mode) -> None:
        super().__init__(model, _loss, data, batch_size, poison=self._flipped)
        self.cohort = CohortGradients(model, mode=mode)
        self.statistics = RunningStatistics(model, peers)

    def gradients(self, params: Tensor, requests: Sequence[Compute], out: Tensor, **_: Any) -> None:
        """Write the gradients of `requests` at `params` [d] into the rows of `out` [r, d]."""
        images, labels = requested_batches(self.data, requests, self.batch_size)
        result = self.cohort(params, images, labels, out)
        # A validator recomputes somebody else's batch: that must not move anybody's running statistics.
        own = [row for row, request in enumerate(requests) if request.purpose is Purpose.TRAIN]
        peers = [requests[row].peer for row in own]
        newest, known = max(peers, default=0), len(self.statistics.means)
        if newest >= known:
            raise ValueError(
                f"peer {newest} has no running statistics, the task was made for {known} peers: give it as many as may "
                "ever take part, those that join later included"
            )
        if own:
            self.statistics.update(peers, result.statistics.rows(own))
            self.losses.update(zip(peers, result.losses[own].tolist(), strict=True))
            self.loss = self.losses[peers[-1]]

    def public_losses(self, params: Tensor, seed: bytes) -> Tensor:
        """The cross-entropy of each of `MEASURED` training samples, or of all, at `params` [d]: float64 on the CPU."""
        return self.cohort.losses(params, *self.batch(seed, min(MEASURED, len(self.data)))).double().cpu()

    def batch(
        self, seed: bytes, size: int, *, poisoned: bool = False, start: int = 0, stop: int | None = None
    ) -> Batch:
        """Images [b, C, H, W] and labels: samples `start` .. `stop` - 1 of the batch of `size` that `seed` draws."""
        images, labels = draw_batches(self.data, [seed], size, flip_labels=[poisoned])
        return images[0, start:stop], labels[0, start:stop]

    def _flipped(self, batch: Batch) -> Batch:
        images, labels = batch
        return images, self.data.classes - 1 - labels

    def agreed(self) -> dict[str, str]:
        """What all peers must share in addition to the settings."""
        source = self.data.source
        return {"data": source.label, "data digest": source.digest, "batches": f"{self.batch_size} samples"}

    def layout(self) -> list[Slot]:
        """Where the tensors of the network lie: parameters in the vector, running statistics in a peer's row."""
        return [*layout_of(self.module), *statistics_slots(self.module)]

    def kept(self, peer: int | None = None) -> dict[str, Tensor]:
        """The running statistics of all peers: [n, S] each."""
        return self.local_state()

    def local_state(self) -> dict[str, Tensor]:
        """The running statistics of all peers, not copied."""
        return self.statistics.state_dict()

    def load_local_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `local_state` returned. Errors: ValueError for missing ones or another shape."""
        self.statistics.load_state_dict(tensors)

    def write_buffers(self, peer: int) -> None:
        """Copy the statistics of `peer` into the original model, to evaluate it as this peer."""
        self.statistics.load_into(self.model, peer)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])
