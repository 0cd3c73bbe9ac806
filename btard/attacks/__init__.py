"""What Byzantine peers do, to their gradients and to the protocol itself: one class per behaviour, one registry.

Needs `btard.protocol` alone; nothing here may be imported by it, nor by `btard.aggregation`.
"""

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
