"""What every process of a swarm begins with: a key, the data, a model in its first state, a place in the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from albert.config import Config
from albert.data.corpus import Corpus
from albert.model import make_model
from albert.optimizer import Optimizer
from albert.task import AlbertTask
from btard.harness.typed_yaml import ConfigError
from btard.protocol.identity import Identity
from btard.swarm.checkpoint import load_start
from btard.swarm.founding import agreed_settings
from btard.swarm.identity import load_identity
from btard.swarm.node import Node


@dataclass(frozen=True)
class Start:
    """The training at its first step."""

    optimizer: Optimizer
    task: AlbertTask
    """Computes on a model of its own."""
    first: int
    """The step of `start_from`: what the protocol calls step 0 is this one."""
    agreed: dict[str, Any]
    """What all peers have to have alike before they talk."""


def begin(config: Config, device: torch.device) -> Start:
    """Load the data and make the model. Errors: DataError; ConfigError for a `start_from` that does not fit."""
    corpus = Corpus(config.data.path)
    size = corpus.vocab_size, corpus.sequence_length, config.seed
    optimizer = Optimizer(make_model(config.model, *size).to(device), config.optimizer)
    task = make_task(config, corpus, device)
    first = 0
    if config.start_from is not None:
        first, tensors = load_start(Path(config.start_from), optimizer.state())
        optimizer.load(tensors)
    return Start(optimizer, task, first, agreed_settings(config, corpus, first, optimizer.params))


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one. Errors: ConfigError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda: torch finds no GPU; see to its driver, or set device to cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def make_task(config: Config, corpus: Corpus, device: torch.device) -> AlbertTask:
    """The gradients of this configuration on the device."""
    return AlbertTask(
        make_model(config.model, corpus.vocab_size, corpus.sequence_length, config.seed).to(device),
        corpus,
        config.batch.total,
        config.batch.per_device,
        half=config.precision == "float16" and device.type == "cuda",
        loss_scale=config.loss_scale,
    )


def make_node(config: Config, identity: Identity) -> Node:
    """This process in the network, not yet started."""
    network = config.network
    return Node(
        identity,
        host=network.host,
        port=network.port,
        announce=network.announce,
        initial_peers=network.addresses,
        relay=network.relay,
    )


def own_identity(config: Config, out: Path) -> Identity:
    """The key in the file that the settings name, or in the run folder; made if it is missing. Errors: ConfigError."""
    try:
        return load_identity(Path(config.network.identity or out / "identity.key"))
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from None
