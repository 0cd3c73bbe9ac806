"""The settings of a swarm that trains ALBERT. The defaults are the paper's, and configs/albert/paper.yaml."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from btard.checks import require
from btard.harness.sections import ProtocolSection
from btard.swarm.config import AWAY, SwarmConfig, as_json, section_of


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """ALBERT with a head for masked words and one for the order of sentences."""

    layers: int = 24
    """How often the one shared layer is applied. It determines the time of a step, but not the number of parameters."""
    hidden: int = 1024
    """Width of the layer; a multiple of the heads. Lower it for a smaller model."""
    heads: int = 16
    """Attention heads. One for each 64 of the width is usual."""
    intermediate: int = 4096
    """Width of the feed-forward part. 4 times the layer's is usual."""
    embedding: int = 128
    """Width of the word embeddings. 128 in every ALBERT."""
    dropout: float = 0.0
    """In the layer; 0 is albert-large-v2's. Raise it if the validation loss rises while the training loss falls."""

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "heads", "intermediate", "embedding"):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name), "see configs/albert/paper.yaml")
        multiple = self.hidden % self.heads == 0
        require(multiple, "hidden", f"a multiple of model.heads = {self.heads}", self.hidden, "change either")
        require(0 <= self.dropout < 1, "dropout", ">= 0 and < 1", self.dropout, "0 is albert-large-v2's")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is learned."""

    path: str = "data/wikitext-103"
    """The folder that python -m albert.prepare has written. Peers compare the digest of its contents; its place may
    differ."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How many sequences a step takes, over all peers."""

    total: int = 4096
    """Sequences per step. Each worker takes an equal share, so the shares grow when peers are banned. Lower it if steps
    take too long, and optimizer.lr with it."""
    per_device: int = 4
    """Sequences that a peer computes at once. Lower it if the memory does not suffice, raise it if a GPU is not busy.
    All peers need the same number: the loss is a mean over the masked words of this many sequences."""

    def __post_init__(self) -> None:
        for name in ("total", "per_device"):
            require(getattr(self, name) >= 1, name, ">= 1", getattr(self, name), "give a positive number")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """LAMB, with a linear warm-up and a linear decay."""

    lr: float = 0.00176
    """Learning rate at the end of the warm-up. Lower it if the loss jumps, or with a smaller batch."""
    warmup_steps: int = 5000
    """Steps of the warm-up. More if the loss rises towards its end."""
    schedule_steps: int = 125_000
    """The learning rate is 0 after this many steps: `steps`, or more if a run is the beginning of a longer one."""
    weight_decay: float = 0.01
    """Not applied to biases and layer norms. 0: none."""
    beta1: float = 0.9
    """Decay of the mean of gradients. Hardly ever changed."""
    beta2: float = 0.999
    """Decay of the mean of squares. Lower it for runs of fewer than some thousand steps."""
    eps: float = 1e-6
    """Added to the root of the squares. Hardly ever changed."""
    clamp: float = 10_000.0
    """How large a tensor's norm may be in LAMB's trust ratio. 10 is usual elsewhere, and shortens the steps of large
    embeddings."""
    bias_correction: bool = True
    """Multiply the rate of step t by sqrt(1 - beta2^t) / (1 - beta1^t), like the authors' code. false for runs of
    some hundred steps, which it would slow down."""

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "lr", "> 0 and finite", self.lr, "the paper uses 0.00176")
        require(self.warmup_steps >= 0, "warmup_steps", ">= 0", self.warmup_steps, "0 is none")
        longer = self.schedule_steps > self.warmup_steps
        require(longer, "schedule_steps", "> optimizer.warmup_steps", self.schedule_steps, "the paper uses 125000")
        require(self.weight_decay >= 0, "weight_decay", ">= 0", self.weight_decay, "0 is none")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, ">= 0 and < 1", getattr(self, name), "0.9 and 0.999 are usual")
        require(self.eps > 0, "eps", "> 0", self.eps, "the paper uses 1e-6")
        require(self.clamp > 0, "clamp", "> 0", self.clamp, "the authors' code has 10000")


@dataclass(frozen=True, kw_only=True)
class Config(SwarmConfig):
    """One swarm that trains ALBERT, and one process of it."""

    free_to_change: ClassVar[frozenset[str]] = SwarmConfig.free_to_change | {"data.path"}
    common: ClassVar[tuple[str, ...]] = (
        *("data.path", "peers", "byzantine", "steps", "seed", "attack.name", "attack.start"),
        *("network.initial_peers", "network.port", "network.announce"),
    )

    run_id: str = "albert"
    """Names the run in every hash and signature. Another run needs another name, or its messages could be replayed."""
    precision: Literal["float32", "float16"] = "float32"
    """float16: mixed precision on a GPU, with master weights in float32: faster on GPUs with tensor cores."""
    loss_scale: float = 4096.0
    """float16: the loss is multiplied by it, so that small gradients do not vanish. A gradient that overflows is
    computed again with a smaller one."""
    model: ModelConfig = field(default_factory=ModelConfig)
    protocol: ProtocolSection = field(default_factory=lambda: ProtocolSection(clip_lambda=1.0, max_away=AWAY))
    data: DataConfig = field(default_factory=DataConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.loss_scale >= 1, "loss_scale", ">= 1", self.loss_scale, "1 is none")

    def agreed(self) -> dict[str, Any]:
        """The settings that all peers must share, by dotted key: JSON values."""
        shared: dict[str, Any] = {"precision": self.precision}
        # Of the batch both: a micro-batch's loss is a mean over its own masked words, so its size counts.
        shared |= section_of(self, "batch") | section_of(self, "model") | section_of(self, "optimizer")
        if self.precision == "float16":
            shared["loss_scale"] = self.loss_scale
        return super().agreed() | as_json(shared)
