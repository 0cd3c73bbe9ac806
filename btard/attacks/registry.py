"""All attacks by name: what the command line, the configs and the documentation know about them."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from inspect import cleandoc, isfunction
from typing import Any

from btard.attacks.accusers import FalseAccusation, FalseEvidence, LyingVotes, Misreport, NeverAccuse
from btard.attacks.aggregators import ColludingAggregate, UnprovenAggregate, WrongAggregate
from btard.attacks.base import Attack, Level
from btard.attacks.broadcasts import Equivocate, LateReveal, NoCertificate, SelectiveSilence
from btard.attacks.cohort import Copy, InnerProduct, LittleIsEnough, MinMax, MinSum
from btard.attacks.forgeries import Forgery, JunkRelays, Replay
from btard.attacks.healing import BlindSpot, HealingLies, HitAndRun
from btard.attacks.malformed import Garbage, MalformedMessage
from btard.attacks.mimic import Mimic
from btard.attacks.own import DelayedGradient, LabelFlip, Noise, RandomDirection, SignFlip, Zero
from btard.attacks.rop import RelocatedOrthogonal
from btard.attacks.schemes import CancellingLies, FavouredHolder, LateAggregate, SoleSender, VanishingAggregator
from btard.attacks.search import SearchedInnerProduct, SearchedLittleIsEnough
from btard.attacks.senders import (
    BadAggregate,
    BadPart,
    Crash,
    NonFinite,
    Silent,
    WithheldAggregate,
    WithheldPart,
    WrongReveal,
)
from btard.named import load_class, own
from btard.options import nearest
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion

_GRADIENT: tuple[type[Attack], ...] = (
    SignFlip,
    RandomDirection,
    LabelFlip,
    DelayedGradient,
    InnerProduct,
    LittleIsEnough,
    Noise,
    Zero,
    Copy,
    MinMax,
    MinSum,
    RelocatedOrthogonal,
    BlindSpot,
    SearchedLittleIsEnough,
    SearchedInnerProduct,
    Mimic,
)
_PROTOCOL: tuple[type[Attack], ...] = (
    WrongAggregate,
    UnprovenAggregate,
    ColludingAggregate,
    LateAggregate,
    FavouredHolder,
    SoleSender,
    VanishingAggregator,
    Misreport,
    CancellingLies,
    FalseAccusation,
    FalseEvidence,
    LyingVotes,
    NeverAccuse,
    NonFinite,
    BadPart,
    WithheldPart,
    BadAggregate,
    WithheldAggregate,
    Silent,
    Crash,
    SelectiveSilence,
    NoCertificate,
    Equivocate,
    LateReveal,
    WrongReveal,
    Replay,
    Forgery,
    Garbage,
    MalformedMessage,
    JunkRelays,
    HealingLies,
    HitAndRun,
)

ATTACKS: dict[str, type[Attack]] = {attack.name: attack for attack in (*_GRADIENT, *_PROTOCOL)}
"""Name -> class. To add an attack, add its class above.

>>> import btard
>>> btard.ATTACKS["sign_flip"].level
'gradient'
"""


@dataclass(frozen=True)
class OptionInfo:
    """One option of an attack, as its class declares it. `kind` is the annotation, such as "float | None"."""

    name: str
    kind: str
    default: Any
    help: str
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class AttackInfo:
    """One row of the table of attacks, taken from the class and its docstring."""

    name: str
    level: Level
    summary: str
    formula: str
    source: str
    options: tuple[OptionInfo, ...]
    requires_cohort: bool


def options_of(attack: type[Attack]) -> tuple[OptionInfo, ...]:
    """The options of `attack`: its own first, then start, every, stop and when, which all have."""
    found = [
        OptionInfo(item.name, str(item.type), item.default, item.metadata["help"], item.metadata["choices"])
        for item in fields(attack)
        if item.metadata and item.default is not MISSING
    ]
    common = {item.name for item in fields(Attack)}
    return tuple(sorted(found, key=lambda info: info.name in common))


def describe() -> tuple[AttackInfo, ...]:
    """The table of attacks in the registry's order."""
    return tuple(_info(attack) for attack in ATTACKS.values())


HOOKS = frozenset(
    name
    for name, hook in vars(Behaviour).items()
    if isfunction(hook) and name not in ("active", "acts", "check_validators")
)
"""Hooks that an attack may override; it must override at least one."""


def attack_class(name: str) -> type[Attack]:
    """The attack `name`, from the registry or a user's own, module:Class.

    Errors: ValueError, in a line that goes on after `name`.
    """
    if not own(name):
        if name not in ATTACKS:
            raise ValueError(f"is unknown{_unknown(name)}")
        return ATTACKS[name]
    found = load_class(name, Attack)
    check_hooks(found)
    return found


def check_hooks(attack: type[Attack]) -> None:
    """Errors: ValueError for a class that overrides no hook, or one of the protocol without saying so.

    Its line goes on after the name of the class.
    """
    lineage = attack.__mro__[: attack.__mro__.index(Attack)]
    hooks = HOOKS & {key for above in lineage for key in vars(above)}
    if not hooks:
        raise ValueError("overrides no hook of btard.Behaviour, such as gradient(self, ctx, gradient)")
    beyond = sorted(hooks - {"gradient", "request"})
    if beyond and attack.level != "protocol":
        raise ValueError(f'overrides {beyond[0]}, a hook of the protocol: say level = "protocol" in the class')


def make_attack(
    name: str,
    collusion: Collusion,
    *,
    start: int = 0,
    every: int = 1,
    stop: int | None = None,
    when: str = "always",
    **options: Any,
) -> Attack:
    """The attack `name`, from the registry or module:Class, for one peer; its class checks the values.

    Errors: ValueError, in one line, for an unknown name or option and for a value that it does not allow.

    >>> import btard
    >>> fellows = btard.Collusion(frozenset({3}), peers=8)
    >>> btard.make_attack("sign_flip", fellows, start=10, scale=2.0).active(10)
    True
    >>> btard.make_attack("sign_flop", fellows)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: unknown attack 'sign_flop', did you mean 'sign_flip'?; there are sign_flip, ...
    """
    try:
        attack = attack_class(name)
    except ValueError as error:
        raise ValueError(
            f"attack {name} {error}" if own(name) else f"unknown attack {name!r}{_unknown(name)}"
        ) from None
    known = [info.name for info in options_of(attack)]
    for key in options:
        if key not in known:
            raise ValueError(f"attack {name} has no option {key!r}{nearest(key, known)}; it has {', '.join(known)}")
    try:
        return attack(collusion=collusion, start=start, every=every, stop=stop, when=when, **options)
    except TypeError as error:
        if not own(name):
            raise
        raise ValueError(f"attack {name} cannot be made: {error}; options are dataclass fields") from None


def _unknown(name: str) -> str:
    return f"{nearest(name, ATTACKS)}; there are {', '.join(ATTACKS)}, and module:Class"


def _info(attack: type[Attack]) -> AttackInfo:
    """The docstring's first paragraph is the summary, "Formula:" and "Source:" begin paragraphs of their own."""
    paragraphs = [" ".join(block.split()) for block in cleandoc(attack.__doc__ or "").split("\n\n")]

    def section(title: str) -> str:
        return next((text[len(title) + 2 :] for text in paragraphs if text.startswith(f"{title}: ")), "")

    return AttackInfo(
        name=attack.name,
        level=attack.level,
        summary=paragraphs[0],
        formula=section("Formula"),
        source=section("Source"),
        options=options_of(attack),
        requires_cohort=attack.requires_cohort,
    )
