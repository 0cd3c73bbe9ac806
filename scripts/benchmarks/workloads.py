"""What the sections compute: plain steps, ways to per-peer gradients, ALBERT's gradient, a task that only copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from btard.protocol.effects import Compute
from btard.training.vector import bind, flatten
from resnet.data import Dataset
from resnet.gradients import CohortGradients, Mode
from resnet.model import resnet18
from resnet.sampling import TrainingData
from resnet.task import ClassificationTask

PEERS, BATCH = 16, 8
PLAIN = ("plain", "plain channels_last")


class PreparedTask:
    """A task whose gradients cost a copy: row `peer` of a matrix prepared once. The rest of a step is the protocol."""

    def __init__(self, d: int, peers: int, device: str = "cpu") -> None:
        self.d = d
        self.rows = torch.randn(peers, d, generator=torch.Generator().manual_seed(0)).to(device)

    def gradients(self, params: Tensor, requests: Sequence[Compute], out: Tensor, **_: Any) -> None:
        """Copy the prepared row of each request's peer into `out` [len(requests), d]."""
        for request, row in zip(requests, out, strict=True):
            row.copy_(self.rows[request.peer])


def random_images(size: int, count: int = 512) -> Dataset:
    """Images [count, 3, size, size] of ten classes; their contents do not matter here."""
    images = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels = torch.arange(count) % 10
    return Dataset(
        train_images=images,
        train_labels=labels,
        test_images=images[:10],
        test_labels=labels[:10],
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        label="random images",
        class_names=tuple(map(str, range(10))),
        mirror=True,
    )


def resnet_task(width: int, size: int, device: str, mode: Mode = "batched") -> tuple[ClassificationTask, Tensor]:
    """The training task of 16 peers with 8 samples each, and initial parameters [d]."""
    model = resnet18(width).to(device)
    data = TrainingData(random_images(size), device)
    return ClassificationTask(model, data, peers=PEERS, batch_size=BATCH, mode=mode), flatten(model)


class Forced(CohortGradients):
    """Computes every size in the given way."""

    def __init__(self, model: torch.nn.Module, way: Literal["threads", "folded"]) -> None:
        super().__init__(model)
        self.way = way

    def strategy(self, images: Tensor) -> Literal["threads", "folded"]:
        return self.way


def gradient_variants(width: int, size: int, device: str) -> dict[str, Callable[[], object]]:
    """Ways to the gradients of one parameter vector on the same 128 samples.

    `plain`: batch normalisation over all samples and one gradient, in torch's default memory format; `plain
    channels_last`: the same in the format that this repository trains in; the others: a gradient per peer, in a plain
    loop, a peer per thread, or folded into one pass.
    """
    model = resnet18(width).to(device)
    flat = flatten(model)
    bound = resnet18(width).to(device)
    bind(bound, flat)
    images, labels = _samples(size, device)
    every, target = images.flatten(0, 1), labels.flatten()
    out = torch.empty(PEERS, len(flat), device=device)
    threads, folded = Forced(model, "threads"), Forced(model, "folded")
    return {
        "plain": lambda: _gradients(model, every, target, torch.contiguous_format),
        "plain channels_last": lambda: _gradients(bound, every, target, torch.channels_last),
        "loop": lambda: _loop(bound, images, labels, torch.channels_last, out),
        "threads": lambda: threads(flat, images, labels, out),
        "folded": lambda: folded(flat, images, labels, out),
    }


def library_step(width: int, size: int, device: str, rule: Callable[[Tensor], Tensor]) -> Callable[[], object]:
    """A step as a library of rules makes it, 128 samples: one worker after the other, then `rule`, [16, d] -> [d]."""
    model = resnet18(width).to(device)
    images, labels = _samples(size, device)
    out = torch.empty(PEERS, len(flatten(model)), device=device)
    return lambda: rule(_loop(model, images, labels, torch.contiguous_format, out))


def _samples(size: int, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(PEERS, BATCH, 3, size, size, generator=generator)
    return images.to(device), torch.randint(0, 10, (PEERS, BATCH), generator=generator).to(device)


def _gradients(network: torch.nn.Module, samples: Tensor, target: Tensor, memory: torch.memory_format) -> Any:
    loss = F.cross_entropy(network(samples.contiguous(memory_format=memory)), target)
    return torch.autograd.grad(loss, list(network.parameters()))


def _loop(network: torch.nn.Module, images: Tensor, labels: Tensor, memory: torch.memory_format, out: Tensor) -> Tensor:
    for samples, target, row in zip(images, labels, out, strict=True):
        gradients = _gradients(network, samples, target, memory)
        torch.cat([gradient.reshape(-1) for gradient in gradients], out=row)
    return out


def albert(device: str, tokens: int, **sizes: Any) -> tuple[int, Callable[[], object]]:
    """Parameters of ALBERT for pretraining, and its gradient on one sequence of `tokens`; random weights.

    `sizes` replaces sizes of albert-large-v2 as published. Errors: ImportError without the package transformers.
    """
    from transformers import AlbertConfig, AlbertForPreTraining

    large: dict[str, Any] = {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    }
    config = AlbertConfig(**{**large, "embedding_size": 128, "vocab_size": 30_000, **sizes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: torch.nn.Module = AlbertForPreTraining(config)
        model.to(device).train()
    words = torch.randint(0, config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    order = torch.zeros(1, dtype=torch.int64, device=device)
    parameters = list(model.parameters())

    def gradient() -> object:
        loss = model(input_ids=words, labels=words, sentence_order_label=order).loss
        return torch.autograd.grad(loss, parameters)

    return sum(parameter.numel() for parameter in parameters), gradient
