"""What every process of a swarm begins with: a key, the task, a model in its initial state, a place in the network."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from btard.files import lock
from btard.harness.run_folder import RunFolder
from btard.harness.typed_yaml import ConfigError
from btard.protocol.hashing import tensor_digest
from btard.protocol.identity import Identity
from btard.swarm.checkpoint import load_start
from btard.swarm.config import SwarmConfig
from btard.swarm.keys import load_identity
from btard.swarm.node import Node
from btard.swarm.notes import Notes
from btard.swarm.task import Auditable, HasNames, Keeps, TaskSource, Training, ready
from btard.task import PARAMETERS
from btard.training.layout import layout_digest, write_layout
from btard.training.optimizer import OwnOptimizer, VectorOptimizer
from btard.training.torch_task import TorchTask

HANDOVER = 10.0
"""Seconds that a process waits for the one before it to end."""


@dataclass(frozen=True)
class Beginning:
    """The training at its first step."""

    task: Training
    """Computes on a model of its own."""
    optimizer: OwnOptimizer
    first: int
    """The step of `start_from`: what the protocol calls step 0 is this one."""
    agreed: dict[str, Any]
    """What all peers must share before they talk, by name: settings, the task's own, initial parameters."""
    made_by: str
    """module:function by which an audit makes the task again: the task's own, or the swarm's."""


def begin(config: SwarmConfig, source: TaskSource) -> Beginning:
    """Create task and optimizer. Errors: ConfigError for what the task refuses, or a `start_from` that does not fit."""
    task, optimizer = ready(source, config)
    first = 0
    if config.start_from is not None:
        first, tensors = load_start(Path(config.start_from), optimizer.state())
        optimizer.load(tensors)
    initial = tensor_digest(optimizer.params, PARAMETERS).hex()
    agreed = config.agreed() | dict(task.agreed()) | {"first step": first, "initial parameters": initial}
    agreed |= {"names of parameters": names_digest(task).hex()}
    if isinstance(optimizer, VectorOptimizer):
        agreed |= optimizer.agreed()
    # What a TorchTask was told by its maker is for `simulate`: here the function of --task makes it.
    inner = type(task).made_by if isinstance(task, TorchTask) else task.made_by if isinstance(task, Auditable) else ""
    made_by = inner or source.name
    return Beginning(task, optimizer, first, agreed, made_by)


def names_digest(task: Training) -> bytes:
    """Digest of the names of the task's parameters and their places, which peers compare and sign; empty without."""
    return layout_digest(task.layout()) if isinstance(task, HasNames) else b""


def write_model(task: Training, out: Path) -> None:
    """Write the names of the task's parameters into the run folder `out`, if the task has names."""
    if isinstance(task, HasNames):
        write_layout(out, task.layout(), task.agreed(), task.kept() if isinstance(task, Keeps) else None)


def make_node(config: SwarmConfig, identity: Identity, notes: Notes) -> Node:
    """This process in the network, not yet started; at its former port, if the settings allow that."""
    network = config.network
    return Node(
        identity,
        host=network.host,
        port=network.port,
        announce=network.announce,
        initial_peers=network.addresses,
        relay=network.relay,
        before=notes.port,
        known=notes.addresses if network.addresses else (),
    )


def hold(config: SwarmConfig, folder: RunFolder) -> list[IO[bytes]]:
    """Keep other processes from this run folder, and from a key beside it, until they are closed or this process ends.

    Two processes with one key contradict each other, and lose the place of that peer. Errors: ConfigError.
    """
    files = {folder.path: folder.path / ".lock"}
    if config.peer is None and config.network.identity is not None:
        key = Path(config.network.identity)
        if os.access(key.parent, os.W_OK):
            files[key] = key.with_name(f"{key.name}.lock")  # a lock on the key itself would end once it is read
    held = []
    for what, file in files.items():
        locked = lock(file, HANDOVER)
        if locked is None:
            raise ConfigError(
                f"{what}: another process uses it; end that one, or choose another --out, and another "
                "network.identity if it is set"
            )
        held.append(locked)
    return held


def own_identity(config: SwarmConfig, folder: RunFolder) -> Identity:
    """The key in the file that the settings name, or in the run folder; made if it is missing and no step was done.

    Errors: ConfigError.
    """
    file = Path(config.network.identity or folder.path / "identity.key")
    if folder.begun() and not file.exists():
        raise ConfigError(
            f"{file}: is missing, and {folder.path} holds a run that was begun with that key; copy the key back, or "
            "choose another --out for a new one"
        )
    try:
        return load_identity(file)
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from None
