"""From a run's settings to its peers: who attacks and how, what all agree on, and the driver that runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from btard.aggregation import AGGREGATORS
from btard.attacks.registry import ATTACKS, make_attack
from btard.audit.recorder import Recorder
from btard.drivers.local import LocalDriver
from btard.drivers.server import ServerDriver
from btard.harness.typed_yaml import ConfigError
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import stream
from resnet.config import Config
from resnet.task import ClassificationTask

HISTORY = "history"
"""Where in the run folder past parameters are kept while an attack needs them: 4 d bytes for each step of its delay."""


def draw_byzantine(config: Config) -> frozenset[int]:
    """Which peers attack: drawn from the seed among all but the evaluating peer; nobody without an attack."""
    if config.attack.name is None:
        return frozenset()
    drawn = stream("byzantine peers", config.seed).choice(config.peers - 1, config.byzantine, replace=False)
    return frozenset(int(peer) + 1 for peer in drawn)


def run_name(config: Config) -> str:
    """The same seed gives the same batches until the attack starts, whatever the attack and tau."""
    return f"resnet/{config.seed}"


def cohort_settings(config: Config, byzantine: frozenset[int], history: Path) -> dict[str, Any]:
    """What every driver is told about the peers."""
    collusion = Collusion(byzantine, config.peers, config.seed)
    attack = config.attack
    behaviours: dict[int, Behaviour] = {}
    if attack.name is not None:
        behaviours = {
            peer: make_attack(attack.name, collusion, start=attack.start, every=attack.every, **attack.chosen())
            for peer in sorted(byzantine)
        }
    return {
        "behaviours": behaviours,
        "collusion": collusion,
        "history_folder": history,
        # From the older of the two checkpoints, should the newer one be damaged.
        "repeatable": 2 * config.checkpoint_every,
    }


def protocol_settings(config: Config) -> ProtocolConfig:
    """What the peers agree on under the aggregator "btard"."""
    aggregator = config.aggregator
    return ProtocolConfig(
        peers=config.peers,
        byzantine=config.tolerated,
        validators=config.validators,
        tau=aggregator.tau,
        tau_quantile=aggregator.tau_quantile,
        run_id=run_name(config),
        directions=aggregator.directions,
        delta_max=aggregator.delta_max,
        clip_lambda=aggregator.clip_lambda,
        validation=aggregator.validation,
        gradient_tol=aggregator.gradient_tol,
        cosine_tol=aggregator.cosine_tol,
        relays=aggregator.relays,
    )


def make_driver(
    config: Config, task: ClassificationTask, byzantine: frozenset[int], folder: Path
) -> LocalDriver | ServerDriver:
    """The protocol among peers for the aggregator "btard", else a trusted server that applies the named rule.

    Errors: ConfigError if the rule guarantees nothing for these numbers of peers, or the attack needs the protocol.
    """
    aggregator = config.aggregator
    shared = {**cohort_settings(config, byzantine, folder / HISTORY), "mode": config.mode}
    if aggregator.name == "btard":
        protocol = protocol_settings(config)
        recorder = Recorder(folder, protocol) if config.commitments == "hashed" else None
        return LocalDriver(protocol, task, recorder=recorder, commitments=config.commitments, **shared)
    check_rule(config)
    rule = AGGREGATORS[aggregator.name]
    return ServerDriver(
        run_name(config),
        config.peers,
        lambda x: rule(x, byzantine=config.tolerated, tau=aggregator.tau),
        task,
        clip_lambda=aggregator.clip_lambda,
        **shared,
    )


def check_rule(config: Config) -> None:
    """Raise ConfigError if a server's rule guarantees nothing for these numbers of peers, or cannot be attacked so."""
    attack, aggregator = config.attack, config.aggregator
    if aggregator.name == "btard":
        return
    try:
        AGGREGATORS[aggregator.name](torch.zeros(config.peers, 1), byzantine=config.tolerated, tau=aggregator.tau)
    except ValueError as error:
        raise ConfigError(f"aggregator.name {aggregator.name}: {error}; change peers, byzantine or the rule") from None
    if attack.name is not None and ATTACKS[attack.name].level == "protocol":
        raise ConfigError(f"attack.name {attack.name}: attacks the protocol, which only aggregator.name btard runs")
