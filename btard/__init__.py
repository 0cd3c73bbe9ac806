"""BTARD: Byzantine-tolerant training without a server (Gorbunov et al., ICML 2022, arXiv 2106.11257).

The library needs torch, numpy, cryptography, PyNaCl, msgspec, blake3 and safetensors; it knows no model, and imports
neither `resnet` nor `albert`. Only `btard.swarm` knows a network; it needs the extra `swarm`. `btard.export` reads a
swarm's checkpoints.

The names below are all that most programs need; docs/library.md shows each at work. They are imported on first use.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btard.aggregation import AGGREGATORS, centered_clip
    from btard.attacks import ATTACKS, Attack, Collusion, make_attack, option
    from btard.audit.recorder import Recorder
    from btard.drivers.collective import CollectiveDriver
    from btard.drivers.links import Links
    from btard.drivers.local import LocalDriver
    from btard.drivers.loop import StepResult
    from btard.drivers.mesh import Mesh
    from btard.drivers.rules import Rule, make_rule
    from btard.drivers.server import ServerDriver
    from btard.protocol.behaviour import Behaviour
    from btard.protocol.config import ProtocolConfig
    from btard.protocol.effects import Compute
    from btard.protocol.hashing import stream
    from btard.protocol.identity import Identity
    from btard.protocol.law import survival_law
    from btard.protocol.ledger import Entry
    from btard.protocol.peer import Peer
    from btard.task import QuadraticTask, Task
    from btard.training.ranks import distributed
    from btard.training.run import Ban, Run
    from btard.training.simulation import simulate
    from btard.training.torch_task import TorchTask

__version__ = "0.2.0"

_PLACES = {
    # Aggregation rules, [n, d] -> [d].
    "AGGREGATORS": "btard.aggregation",
    "centered_clip": "btard.aggregation",
    "Rule": "btard.drivers.rules",
    "make_rule": "btard.drivers.rules",
    # The protocol: what all peers agree on, one peer, and what they leave behind.
    "Compute": "btard.protocol.effects",
    "Entry": "btard.protocol.ledger",
    "Identity": "btard.protocol.identity",
    "Peer": "btard.protocol.peer",
    "ProtocolConfig": "btard.protocol.config",
    "stream": "btard.protocol.hashing",
    "survival_law": "btard.protocol.law",
    # Byzantine peers.
    "ATTACKS": "btard.attacks",
    "Attack": "btard.attacks",
    "Behaviour": "btard.protocol.behaviour",
    "Collusion": "btard.attacks",
    "make_attack": "btard.attacks",
    "option": "btard.attacks",
    # A model, and what runs it.
    "CollectiveDriver": "btard.drivers.collective",
    "Links": "btard.drivers.links",
    "LocalDriver": "btard.drivers.local",
    "Mesh": "btard.drivers.mesh",
    "QuadraticTask": "btard.task",
    "ServerDriver": "btard.drivers.server",
    "StepResult": "btard.drivers.loop",
    "Task": "btard.task",
    # A PyTorch model, trained.
    "Ban": "btard.training.run",
    "distributed": "btard.training.ranks",
    "Run": "btard.training.run",
    "simulate": "btard.training.simulation",
    "TorchTask": "btard.training.torch_task",
    # Evidence for others; `btard.audit.audit` checks it.
    "Recorder": "btard.audit.recorder",
}
"""Public name -> the module that defines it."""

__all__ = [  # noqa: RUF022  (as in `_PLACES`; a test compares)
    "AGGREGATORS",
    "centered_clip",
    "Rule",
    "make_rule",
    "Compute",
    "Entry",
    "Identity",
    "Peer",
    "ProtocolConfig",
    "stream",
    "survival_law",
    "ATTACKS",
    "Attack",
    "Behaviour",
    "Collusion",
    "make_attack",
    "option",
    "CollectiveDriver",
    "Links",
    "LocalDriver",
    "Mesh",
    "QuadraticTask",
    "ServerDriver",
    "StepResult",
    "Task",
    "Ban",
    "distributed",
    "Run",
    "simulate",
    "TorchTask",
    "Recorder",
]


def _begin() -> None:
    """If `python -m` runs one of our programs: let it end with one line even if its imports fail."""
    if any(word.startswith("-m") for word in sys.orig_argv[1:]):
        from btard.boundary import begin

        begin()


_begin()


def __getattr__(name: str) -> Any:
    """Import a public name. Nothing is imported before it is asked for, so `import btard` takes no time."""
    if name not in _PLACES:
        raise AttributeError(f"module 'btard' has no attribute {name!r}")
    value = getattr(import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _PLACES.keys())
