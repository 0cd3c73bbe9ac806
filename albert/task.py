"""What a swarm trains: gradients of public batches. A peer computes its own, and those of a peer that it validates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch.nn import functional as F
from transformers import AlbertForPreTraining

from albert.config import Config
from albert.data.batches import NOT_MASKED, Batch, batch
from albert.data.corpus import Corpus
from albert.measure import measure, validation_batches
from albert.model import make_model
from albert.optimizer import Optimizer
from btard.harness.device import pick_device
from btard.training.torch_task import TorchTask

MEASURED = 64
"""Number of sequences by which two states are compared: each has dozens of masked words, the same for both states."""


OVERFLOW_STEP = 16.0
"""A loss scale that is too large is divided by this, again and again."""


def share(total: int, workers: int) -> int:
    """Sequences that each of `workers` peers computes of a step's `total`: the same number for all, at least one."""
    return max(1, math.ceil(total / workers))


class AlbertTask(TorchTask):
    """The loss of `model` on `corpus`: mean over masked words plus mean over sentence orders, per micro-batch.

    The model is the task's own. `total` sequences are shared by the workers of a step, `per_device` computed at once.
    A gradient depends on the parameters, the request and the number of workers alone; equal machines with equal numbers
    of threads get equal bits.
    """

    made_by = "albert.audit:task_of"

    def __init__(
        self,
        model: AlbertForPreTraining,
        corpus: Corpus,
        total: int,
        per_device: int,
        *,
        half: bool = False,
        loss_scale: float = 1.0,
    ) -> None:
        self.corpus, self.total, self.per_device = corpus, total, per_device
        self.half, self.loss_scale = half, loss_scale if half else 1.0
        self._scale = self.loss_scale
        super().__init__(model, self._loss, corpus, total, micro_batch=per_device)
        self.moving = ()  # its buffers are constant

    def _loss(self, model: torch.nn.Module, inputs: Batch) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.float16, enabled=self.half and self.device.type == "cuda"):
            return model(**inputs).loss

    def own(self, model: torch.nn.Module) -> torch.nn.Module:
        """The given model: `make` creates one for the task and one for the optimizer."""
        return model

    def check(self, *, exact: bool = True) -> None:
        """Checks nothing: a gradient takes minutes, and the tests know this task."""

    def batch(
        self, seed: bytes, size: int, *, poisoned: bool = False, start: int = 0, stop: int | None = None
    ) -> Batch:
        """Sequences `start` .. `stop` - 1 of the batch of `size` that `seed` determines, masked, on the device."""
        inputs = batch(self.corpus, seed, size, flip_labels=poisoned, start=start, stop=stop)
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    def compute(self, seed: bytes, row: torch.Tensor, *args: Any, **more: Any) -> Any:
        """As in `TorchTask`, without the scale of half precision.

        Where a scaled gradient overflows, it is computed again with a smaller scale, alike at every peer.
        """
        self._scale = self.loss_scale
        while True:
            result = super().compute(seed, row, *args, **more)
            if self._scale == 1:
                return result
            if torch.isfinite(row).all():
                row.div_(self._scale)
                return result
            self._scale = max(1.0, self._scale / OVERFLOW_STEP)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of the scaled loss."""
        (loss * self._scale).backward()

    def samples(self, workers: int) -> int:
        """Sequences that each of `workers` peers computes of a step."""
        return share(self.total, workers)

    @torch.no_grad()
    def public_losses(self, params: torch.Tensor, seed: bytes) -> torch.Tensor:
        """The loss of each of `MEASURED` training sequences at `params` [d]: float64 on the CPU.

        The mean over its masked words plus that of its sentence order, without dropout and in full precision.
        """
        self.load(params)
        self.module.eval()
        try:
            starts = range(0, MEASURED, self.per_device)
            pieces = [self._losses(seed, start, min(start + self.per_device, MEASURED)) for start in starts]
        finally:
            self.module.train()
        return torch.cat(pieces)

    def _losses(self, seed: bytes, start: int, stop: int) -> torch.Tensor:
        """The losses of sequences `start` .. `stop` - 1."""
        inputs = self.batch(seed, MEASURED, start=start, stop=stop)
        words, order = inputs.pop("labels"), inputs.pop("sentence_order_label")
        said = self.module(**inputs)
        logits = said.prediction_logits.flatten(0, 1)
        of_words = F.cross_entropy(logits, words.flatten(), reduction="none", ignore_index=NOT_MASKED).view_as(words)
        of_order = F.cross_entropy(said.sop_logits, order, reduction="none")
        return (of_words.double().sum(1) / (words != NOT_MASKED).sum(1) + of_order.double()).cpu()

    def agreed(self) -> dict[str, str]:
        """What all peers must share in addition to the settings."""
        return {"data": self.corpus.digest}

    def evaluation(self) -> Callable[[torch.Tensor], dict[str, float]]:
        """The function that measures parameters [d] on the validation split. Errors: DataError."""
        batches = validation_batches(self.corpus.folder)
        return lambda params: self.evaluate(params, batches)

    def evaluate(self, params: torch.Tensor, batches: Sequence[Batch]) -> dict[str, float]:
        """What a coordinator shows at `params` [d]: `validation_loss` and its parts, as `measure` names them."""
        self.load(params)
        return measure(cast(AlbertForPreTraining, self.module), batches)


def _model_on(device: torch.device, config: Config, corpus: Corpus) -> AlbertForPreTraining:
    model = make_model(config.model, corpus.vocab_size, corpus.sequence_length, config.seed)
    return torch.nn.Module.to(model, device)  # transformers wraps `to` in a way that mypy takes for a function


def make_task(config: Config, corpus: Corpus, device: torch.device) -> AlbertTask:
    """The gradients of this configuration on the device."""
    return AlbertTask(
        _model_on(device, config, corpus),
        corpus,
        config.batch.total,
        config.batch.per_device,
        half=config.precision == "float16" and device.type == "cuda",
        loss_scale=config.loss_scale,
    )


def make(config: Config) -> tuple[AlbertTask, Optimizer]:
    """Task and optimizer for `python -m btard.swarm --task albert.task:make`, each with its own model.

    Errors: DataError; ConfigError for a GPU that is not there.
    """
    corpus, device = Corpus(config.data.path), pick_device(config.device)
    return make_task(config, corpus, device), Optimizer(_model_on(device, config, corpus), config.optimizer)
