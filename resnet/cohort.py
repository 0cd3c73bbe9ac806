"""From a run's settings to its model, task and peers: who attacks and how, the driver that runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import ResNet

from btard.attacks.registry import attack_class
from btard.audit.recorder import Recorder
from btard.drivers.emulated import EmulatedDriver
from btard.drivers.local import LocalDriver
from btard.drivers.rules import Rule, RuleView, applied, make_rule
from btard.drivers.server import ServerDriver
from btard.harness.typed_yaml import ConfigError
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from resnet.config import Config
from resnet.data import Dataset
from resnet.model import resnet18
from resnet.sampling import TrainingData
from resnet.task import ClassificationTask

HISTORY = "history"
"""The place in the run folder for past parameters while an attack needs them: 4 d bytes for each step of its delay."""


def make_model(config: Config, data: Dataset) -> ResNet:
    """Return the initial network of a run with these settings, on the CPU."""
    model = config.model
    return resnet18(model.width, data.classes, data.channels, init=model.init, seed=config.seed)


def make_task(config: Config, data: Dataset, model: nn.Module) -> ClassificationTask:
    """Return the gradients of all peers, computed where `model` is."""
    on_device = TrainingData(data, next(model.parameters()).device)
    return ClassificationTask(model, on_device, peers=config.peers, batch_size=config.batch_size, mode=config.mode)


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
    """The protocol among peers for the aggregator "btard", otherwise the authors' simulation of it, or a server's rule.

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
    return ServerDriver(
        config.run_id,
        config.peers,
        rule_of(config),
        task,
        momentum=config.aggregator.momentum,
        **shared,
    )


def rule_of(config: Config) -> Rule:
    """The rule of the server. Errors: ValueError in one line."""
    chosen = config.aggregator
    return make_rule(
        chosen.name,
        byzantine=config.tolerated,
        tau=chosen.radius,
        mixing=chosen.mixing,
        bucket=chosen.bucket,
        options=chosen.options,
    )


def check_rule(config: Config) -> None:
    """Raise ConfigError if a server's rule guarantees nothing for these numbers of peers, or cannot be so attacked."""
    attack, name = config.attack, config.aggregator.name
    if config.btard:
        return
    try:  # one column more than there are rows, so that a rule cannot mix them up unnoticed
        if name != "emulated":
            applied(rule_of(config), torch.zeros(config.peers, config.peers + 1), RuleView())
    except ValueError as error:
        raise ConfigError(f"aggregator.name {name}: {error}; change peers, byzantine or the rule") from None
    if attack.name is not None and attack_class(attack.name).level == "protocol":
        raise ConfigError(f"attack.name {attack.name}: attacks the protocol, which only aggregator.name btard runs")
