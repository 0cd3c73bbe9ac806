"""What Byzantine peers do, to their gradients and to the protocol itself: one class per behaviour, one registry.

It builds on `btard.protocol`; nothing here may be imported by it, nor by `btard.aggregation`. The names below come on
first use: `python -m btard.attacks --help` needs none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from btard.attacks.base import Attack, option
    from btard.attacks.registry import ATTACKS, AttackInfo, OptionInfo, attack_class, describe, make_attack
    from btard.protocol.collusion import Collusion

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackInfo",
    "Collusion",
    "OptionInfo",
    "attack_class",
    "describe",
    "make_attack",
    "option",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'btard.attacks' has no attribute {name!r}")
    return getattr(import_module("btard.attacks.base" if name == "option" else "btard.attacks.registry"), name)
