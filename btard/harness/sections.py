"""The sections `protocol` and `attack` of a program's settings: the same in every program."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from btard.attack_names import GRADIENT, PROTOCOL
from btard.checks import FieldError, require
from btard.harness.typed_yaml import nearest
from btard.named import own
from btard.protocol.config import ProtocolConfig, ProtocolSettings

if TYPE_CHECKING:
    from btard.attacks.base import Attack
    from btard.protocol.collusion import Collusion

AttackOption = int | float | bool | str


@dataclass(frozen=True, kw_only=True)
class ProtocolSection(ProtocolSettings):
    """What peers do to keep each other honest."""

    derived: ClassVar[dict[str, str]] = {"peers": "peers", "run_id": "run_id"}
    """Fields of ProtocolConfig that are no keys of this section -> the program's key that they follow from."""

    heal: int | Literal["auto", "off"] = "auto"
    """After a member was removed, all peers go back by at most this many steps, to an earlier state that was clearly
    better on a public batch (`btard.protocol.heal`). auto: as many steps as nine in ten attackers need to be caught.
    off: the harm of an attack stays, as in the paper."""
    byzantine: int | None = None
    """b: how many Byzantine peers the protocol is made for: less than half. null: the number in `byzantine`, outside
    of this section. Set it to see what a defence costs when nobody attacks."""

    def config(self, *, peers: int, byzantine: int, run_id: str) -> ProtocolConfig:
        """Return what the peers agree on. Raises FieldError with the program's key for what cannot work."""
        chosen = {item.name: getattr(self, item.name) for item in fields(ProtocolSettings)}
        made_for = byzantine if self.byzantine is None else self.byzantine
        try:
            return ProtocolConfig(peers, made_for, run_id, **chosen)
        except FieldError as error:
            raise FieldError(self._key(error.field), error.message, beside=self._key(error.beside)) from None

    def check(self, *, peers: int, byzantine: int, run_id: str) -> None:
        """Raise FieldError as `config` does, and do not warn: warnings are for callers that run the protocol."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.config(peers=peers, byzantine=byzantine, run_id=run_id)

    def _key(self, name: str) -> str:
        if name == "byzantine" and self.byzantine is None:
            return name
        return self.derived.get(name, f"protocol.{name}")


@dataclass(frozen=True, kw_only=True)
class AttackSection:
    """What the Byzantine peers do, and when."""

    name: str | None = None
    """An attack of btard.attacks, such as sign_flip or alie, or your own by module:Class (docs/your-own-attack.md).
    null: nobody attacks."""
    start: int = 1000
    """First step of the attack: late enough that the model has learned something that it can lose."""
    every: int = 1
    """Attack every N-th step from the start. More than 1: attackers are caught later, and do less harm."""
    stop: int | None = None
    """First step without the attack. null: it continues to the end."""
    options: dict[str, AttackOption] = field(default_factory=dict)
    """Options of the attack by name: --attack.options.NAME VALUE. docs/attacks.md lists them all."""

    shorthands: ClassVar[tuple[str, ...]] = ()
    """Fields that are options of some attacks."""

    def __post_init__(self) -> None:
        require(self.start >= 0, "start", ">= 0", self.start, "0 attacks from the first step on")
        require(self.every >= 1, "every", ">= 1", self.every, "1 attacks at every step")
        later = self.stop is None or self.stop > self.start
        require(later, "stop", f"> attack.start = {self.start}", self.stop, "null is never", beside="start")
        known, name = (*GRADIENT, *PROTOCOL), self.name
        if name is not None and not own(name):
            rule = f"null, module:Class or one of {', '.join(known)}"
            require(name in known, "name", rule, name, nearest(name, known))

    def chosen(self) -> dict[str, AttackOption]:
        """Return the options of the attack, without start, every and stop."""
        named = {name: getattr(self, name) for name in self.shorthands}
        return {name: value for name, value in named.items() if value is not None} | dict(self.options)

    def make(self, collusion: Collusion, *, begun: int = 0) -> Attack:
        """Return the attack of one peer among its fellows, whose first step is step `begun` of the run.

        Raises ValueError if the attack cannot work among so many.
        """
        from btard.attacks.registry import make_attack

        stop = None if self.stop is None else max(1, self.stop - begun)
        start = max(0, self.start - begun)
        options: dict[str, Any] = {"start": start, "every": self.every, "stop": stop, **self.chosen()}
        return make_attack(str(self.name), collusion, **options)

    def check(self, *, peers: int, byzantine: int, validators: int, steps: int) -> None:
        """Raise FieldError with the program's key if `byzantine` of `peers` cannot attack like this within `steps`."""
        if self.name is None:
            return
        rule = f"> 0 with the attack {self.name}"
        require(byzantine > 0, "byzantine", rule, byzantine, "set it, or attack.name to null", beside="attack.name")
        rule, fix = f"< steps = {steps}", "start earlier, or the run sees no attack"
        require(self.start < steps, "attack.start", rule, self.start, fix, beside="steps")
        # Last, and here: mistakes above do not wait for the import of torch.
        from btard.attacks.registry import attack_class, options_of
        from btard.protocol.collusion import Collusion

        try:
            known = [info.name for info in options_of(attack_class(self.name))]
        except ValueError as error:
            raise FieldError("attack.name", f"{self.name} {error}") from None
        for option in self.chosen():
            if option not in known:
                what = f"is no option of {self.name}, which has {', '.join(known)}"
                raise FieldError(f"attack.{self._place(option)}", what)
        try:  # Attacks know best which values they allow, and some depend on the numbers of peers.
            self.make(Collusion(frozenset(range(1, 1 + byzantine)), peers)).check_validators(validators)
        except FieldError as error:
            raise FieldError(f"attack.{self._place(error.field)}", error.message) from None
        except ValueError as error:
            raise FieldError("attack.name", f"{self.name} cannot work here: {error}") from None

    def _place(self, option: str) -> str:
        return option if option in {"start", "every", "stop", *self.shorthands} else f"options.{option}"
