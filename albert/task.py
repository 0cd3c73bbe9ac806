"""What a swarm trains: gradients of public batches. A peer computes its own, and those of a peer that it validates."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn import functional as F
from transformers import AlbertForPreTraining

from albert.config import Config
from albert.data.batches import NOT_MASKED, Batch, batch
from albert.data.corpus import Corpus
from albert.measure import measure, validation_batches
from albert.model import make_model
from albert.optimizer import Optimizer
from btard.protocol.effects import Compute
from btard.protocol.hashing import digest
from btard.swarm.task import pick_device
from btard.task import TooLate, never
from btard.training.layout import Slot, layout_of
from btard.training.vector import bind, flatten, parameter_count, views

MEASURED = 64
"""Sequences by which two states are compared: each has dozens of masked words, and both states see the same ones."""


def share(total: int, workers: int) -> int:
    """Sequences that each of `workers` peers computes of a step's `total`: as many for all, so at least one."""
    return max(1, math.ceil(total / workers))


class AlbertTask:
    """The loss of `model` on `corpus`: mean over masked words plus mean over sentence orders, per micro-batch.

    The model is used as a function: it keeps its own copy of the parameters. A gradient depends on the parameters, the
    request and the number of workers alone; equal machines with equal numbers of threads get equal bits.
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
        self.model, self.corpus, self.total, self.per_device = model, corpus, total, per_device
        self.d = parameter_count(model)
        self.tensors = tuple(parameter.numel() for parameter in model.parameters())
        self.half, self.loss_scale = half, loss_scale if half else 1.0
        self.device = next(model.parameters()).device
        self._params = flatten(model).detach()
        bind(model, self._params)
        rates = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob")
        self._drops = any(getattr(model.config, rate) > 0 for rate in rates)
        self.loss = math.nan
        """Mean loss of the latest gradient that was computed for training."""

    def gradients(
        self,
        params: torch.Tensor,
        requests: Sequence[Compute],
        out: torch.Tensor,
        *,
        workers: int = 1,
        too_late: Callable[[], bool] = never,
    ) -> None:
        """Write the gradients of `requests` at `params` [d] into the rows of `out` [r, d], float32.

        `workers` share the sequences of the step. `too_late` is asked between micro-batches. Errors: TooLate.
        """
        for request, row in zip(requests, out, strict=True):
            row.copy_(self._gradient(params, request, workers, too_late))

    def _gradient(
        self, params: torch.Tensor, request: Compute, workers: int, too_late: Callable[[], bool]
    ) -> torch.Tensor:
        """The gradient [d] on the device."""
        size = share(self.total, workers)
        self._params.copy_(params)
        gradient = torch.zeros_like(self._params)
        for parameter, piece in zip(self.model.parameters(), views(self.model, gradient), strict=True):
            parameter.grad = piece
        loss = 0.0
        for start in range(0, size, self.per_device):
            if too_late():
                raise TooLate
            stop = min(start + self.per_device, size)
            inputs = batch(self.corpus, request.seed, size, flip_labels=request.flip_labels, start=start, stop=stop)
            with self._numerics(request.seed, start):
                result = self.model(**{name: tensor.to(self.device) for name, tensor in inputs.items()})
            part = result.loss * ((stop - start) / size)
            (part * self.loss_scale).backward()
            loss += part.detach()
        if self.loss_scale != 1:
            gradient.div_(self.loss_scale)
        for parameter in self.model.parameters():
            parameter.grad = None
        if request.purpose.value == "train":
            self.loss = float(loss)
        return gradient

    def samples(self, workers: int) -> int:
        """Sequences that each of `workers` peers computes of a step."""
        return share(self.total, workers)

    @torch.no_grad()
    def public_losses(self, params: torch.Tensor, seed: bytes) -> torch.Tensor:
        """The loss of each of `MEASURED` training sequences at `params` [d]: float64 on the CPU.

        The mean over its masked words plus that of its sentence order, without dropout and in full precision.
        """
        self._params.copy_(params)
        self.model.eval()
        try:
            starts = range(0, MEASURED, self.per_device)
            pieces = [self._losses(seed, start, min(start + self.per_device, MEASURED)) for start in starts]
        finally:
            self.model.train()
        return torch.cat(pieces)

    def _losses(self, seed: bytes, start: int, stop: int) -> torch.Tensor:
        """The losses of sequences `start` .. `stop` - 1."""
        inputs = batch(self.corpus, seed, MEASURED, start=start, stop=stop)
        inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        words, order = inputs.pop("labels"), inputs.pop("sentence_order_label")
        said = self.model(**inputs)
        logits = said.prediction_logits.flatten(0, 1)
        of_words = F.cross_entropy(logits, words.flatten(), reduction="none", ignore_index=NOT_MASKED).view_as(words)
        of_order = F.cross_entropy(said.sop_logits, order, reduction="none")
        return (of_words.double().sum(1) / (words != NOT_MASKED).sum(1) + of_order.double()).cpu()

    def agreed(self) -> dict[str, str]:
        """What all peers must have alike beside the settings."""
        return {"data": self.corpus.digest}

    def evaluation(self) -> Callable[[torch.Tensor], dict[str, float]]:
        """The function that measures parameters [d] on the validation split. Errors: DataError."""
        batches = validation_batches(self.corpus.folder)
        return lambda params: self.evaluate(params, batches)

    def evaluate(self, params: torch.Tensor, batches: Sequence[Batch]) -> dict[str, float]:
        """What a coordinator shows at `params` [d]: `validation_loss` and its parts, as `measure` names them."""
        self._params.copy_(params)
        return measure(self.model, batches)

    def layout(self) -> list[Slot]:
        """Where the model's named parameters lie in the vector [d]."""
        return layout_of(self.model)

    @contextlib.contextmanager
    def _numerics(self, seed: bytes, start: int) -> Iterator[None]:
        """Dropout that follows from the public seed, and half precision where it was asked for."""
        cuda = self.device.type == "cuda"
        if not self._drops:  # torch's generator is the whole process's: whoever else draws from it is left alone
            with torch.autocast(self.device.type, torch.float16, enabled=self.half and cuda):
                yield
            return
        with torch.random.fork_rng(devices=[self.device] if cuda else []):
            torch.manual_seed(int.from_bytes(digest("dropout", seed, start)[:8], "little"))
            with torch.autocast(self.device.type, torch.float16, enabled=self.half and cuda):
                yield


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
    """Task and optimizer for `python -m btard.swarm --task albert.task:make`, each with a model of its own.

    Errors: DataError; ConfigError for a GPU that is not there.
    """
    corpus, device = Corpus(config.data.path), pick_device(config.device)
    return make_task(config, corpus, device), Optimizer(_model_on(device, config, corpus), config.optimizer)
