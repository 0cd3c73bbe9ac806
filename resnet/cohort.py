"""From a run's settings to its model and peers: who attacks and how, what all agree on, the driver that runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torchvision.models.resnet import ResNet

from btard.aggregation import AGGREGATORS
from btard.attacks.registry import ATTACKS
from btard.audit.recorder import Recorder
from btard.drivers.emulated import EmulatedDriver
from btard.drivers.local import LocalDriver
from btard.drivers.server import ServerDriver
from btard.harness.typed_yaml import ConfigError
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from resnet.config import Config
from resnet.data import Dataset
from resnet.model import resnet18
from resnet.task import ClassificationTask

HISTORY = "history"
"""Where in the run folder past parameters are kept while an attack needs them: 4 d bytes for each step of its delay."""


def make_model(config: Config, data: Dataset) -> ResNet:
    """Return the network that a run with these settings begins with, on the CPU."""
    model = config.model
    return resnet18(model.width, data.classes, data.channels, init=model.init, seed=config.seed)


def cohort_settings(
    config: Config, task: ClassificationTask, byzantine: frozenset[int], history: Path
) -> dict[str, Any]:
    """What every driver is told about the peers."""
    collusion = Collusion(byzantine, config.peers, config.seed, tensors=task.tensors)
    behaviours: dict[int, Behaviour] = {peer: config.attack.make(collusion) for peer in sorted(byzantine)}
    return {
        "behaviours": behaviours,
        "collusion": collusion,
        "history_folder": history,
        # From the older of the two checkpoints, should the newer one be damaged.
        "repeatable": 2 * config.checkpoint_every,
    }


def make_driver(
    config: Config, task: ClassificationTask, byzantine: frozenset[int], folder: Path
) -> LocalDriver | ServerDriver:
    """The protocol among peers for the aggregator "btard", else the authors' simulation of it, or a server's rule.

    Errors: ConfigError if the rule guarantees nothing for these numbers of peers, or the attack needs the protocol.
    """
    aggregator = config.aggregator
    shared = {**cohort_settings(config, task, byzantine, folder / HISTORY), "mode": config.mode}
    if config.btard:
        protocol = config.protocol_config()
        recorder = Recorder(folder, protocol, "resnet.audit:task_of") if config.commitments == "hashed" else None
        return LocalDriver(protocol, task, recorder=recorder, commitments=config.commitments, **shared)
    check_rule(config)
    shared["clip_lambda"] = config.protocol.clip_lambda
    if aggregator.name == "emulated":
        return EmulatedDriver(
            config.run_id,
            config.peers,
            float(config.protocol.tau),
            task,
            bans=aggregator.bans,
            replace_banned=aggregator.replace_banned,
            validators=config.protocol.validators,
            **shared,
        )
    rule = AGGREGATORS[aggregator.name]
    return ServerDriver(
        config.run_id,
        config.peers,
        lambda x: rule(x, byzantine=config.tolerated, tau=aggregator.radius),
        task,
        **shared,
    )


def check_rule(config: Config) -> None:
    """Raise ConfigError if a server's rule guarantees nothing for these numbers of peers, or cannot be attacked so."""
    attack, aggregator = config.attack, config.aggregator
    if config.btard:
        return
    try:
        if aggregator.name in AGGREGATORS:
            zeros = torch.zeros(config.peers, 1)
            AGGREGATORS[aggregator.name](zeros, byzantine=config.tolerated, tau=aggregator.radius)
    except ValueError as error:
        raise ConfigError(f"aggregator.name {aggregator.name}: {error}; change peers, byzantine or the rule") from None
    if attack.name is not None and ATTACKS[attack.name].level == "protocol":
        raise ConfigError(f"attack.name {attack.name}: attacks the protocol, which only aggregator.name btard runs")
