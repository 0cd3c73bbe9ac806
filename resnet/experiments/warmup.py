"""The steps that runs have in common before their attacks start are trained once; each run continues from a copy.

Until its attack starts, a run depends on its model, data, seed and defence alone. A warm-up is a run of those without
an attack and without an end; it leaves a checkpoint at each step where a run of the grid goes on by itself. Such a run
has the same files, to the bit, as one that was trained alone from step 0 on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from blake3 import blake3

from btard.attacks.registry import attack_class
from btard.audit.files import CHECKPOINTS, CONFIG
from btard.harness.run_folder import RunFolder
from btard.harness.settings import differing_keys, read_config
from btard.protocol.collusion import Collusion
from btard.protocol.hashing import PROTOCOL_VERSION
from resnet.config import AttackConfig, Config
from resnet.data import Dataset
from resnet.training import train

ENDLESS = 2**31
"""Number of steps of a warm-up: it never reaches its last one, which would be measured differently."""


def warm_up_of(config: Config) -> Config:
    """Return the settings of the run that `config` has in common with others until its attack starts."""
    made_for = config.tolerated if config.aggregator.for_a_number else None
    return replace(
        config,
        steps=ENDLESS,
        byzantine=0,
        checkpoint_every=Config.checkpoint_every,
        attack=AttackConfig(),
        aggregator=replace(config.aggregator, byzantine=made_for),
        protocol=replace(config.protocol, byzantine=None),
        optimizer=replace(config.optimizer, schedule_steps=config.schedule_steps),
    )


def fork_step(config: Config) -> int:
    """Return the step from which a run must be trained separately.

    An attack that sends gradients of the past has to see the parameters of the steps that it looks back to, and one on
    the protocol what was said in the step before: checkpoints hold neither. A run without attack differs from its
    warm-up by its last step, which is measured on all test images.
    """
    attack = config.attack
    if attack.name is None:
        return config.steps - 1
    cohort = Collusion(frozenset(range(1, 1 + config.byzantine)), config.peers)
    lookback = attack.make(cohort).lookback
    before = lookback if lookback > 1 else int(attack_class(attack.name).level == "protocol")
    return max(0, attack.start - before)


def warm_up_name(config: Config) -> str:
    """Return the folder of a warm-up below warmups/: words that people look for, and a digest.

    The digest is that of the protocol's version, for no run goes on from the steps of another one, and of the settings
    that are not the defaults, so that a setting that is new to the program changes no name.
    """
    name = config.aggregator.name + ("" if config.radius is None else f"-{config.radius}")
    settings = json.dumps([PROTOCOL_VERSION, *([key, value] for key, value, _ in differing_keys(config, Config()))])
    return f"{name}/seed-{config.seed}-{blake3(settings.encode()).hexdigest(8)}"


def fork_point(folder: Path, step: int) -> Path:
    """Return the checkpoint that the warm-up in `folder` leaves at `step`."""
    return folder / "forks" / f"step-{step:08d}.safetensors"


def extend(
    config: Config,
    folder: Path,
    step: int,
    *,
    on_step: Callable[[int], None] | None = None,
    data: Dataset | None = None,
) -> None:
    """Train the warm-up in `folder` up to its fork point at `step`, or continue it; nothing if it is there already."""
    target = fork_point(folder, step)
    if target.exists():
        return
    train(config, folder, progress=False, until=step, events=False, on_step=on_step, data=data)
    target.parent.mkdir(exist_ok=True)
    # Another name for the same file: a checkpoint is never changed once it is there.
    os.link(folder / CHECKPOINTS / target.name, target)


def branch(config: Config, folder: Path, warm_up: Path, step: int) -> None:
    """Put the run folder `folder` into its state after `step` steps; nothing if the run has begun by itself.

    Raises RunFolderError if the warm-up was trained on other data.
    """
    common = read_config(Config, warm_up / CONFIG)
    if config.data.digest is None:
        config = replace(config, data=replace(config.data, digest=common.data.digest))
    run = RunFolder(folder, config, events=False)
    if run.summary() is None and not run.has_checkpoints():
        RunFolder(warm_up, warm_up_of(config), events=False)
        run.adopt(warm_up, fork_point(warm_up, step), step)
    run.close()
