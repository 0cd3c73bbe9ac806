"""Twins: two copies of the correct protocol code under one key, each of which sees a part of the network.

They say different things without a line of hostile code: each says what is right by what it has heard, or by what it
has otherwise than its twin. To the others they are one Byzantine peer.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import torch
from msgspec.structs import replace

from btard.attacks.base import without_fellows
from btard.protocol.effects import (
    QUIET,
    Broadcast,
    Compare,
    Compute,
    Effect,
    Exchange,
    Idle,
    Measure,
    Purpose,
    Relay,
    Together,
)
from btard.protocol.hashing import digest
from btard.protocol.identity import Identity
from btard.protocol.messages import JoinRequest
from btard.protocol.peer import Outcome, Peer
from btard.protocol.signed import Bundle
from scripts.hunt.cases import Twin
from scripts.hunt.programs import Honest
from scripts.hunt.room import FAILURES, RECIPIENTS, Room

SIGHTS = ("own", "all")
"""Which peers a twin hears directly: the honest peers that hear it, or all. It always hears colluders."""
DIFFERENCES = ("nothing", "secrets", "gradient", "late", "requests")
"""What the second twin has otherwise than the first: nothing but its part of the network; other secrets for the coin;
a gradient that is one unit in the last place off; none in time; no newcomers' requests."""


class Twinned(Honest):
    """The behaviour of a twin: that of an honest peer, except that it reports no fellow if its cohort is `loyal`."""

    byzantine = True

    def __init__(self, room: Room, plan: Twin, *, loyal: bool, second: bool = False) -> None:
        super().__init__(room)
        self.plan, self.loyal, self.second = plan, loyal, second

    def differs(self, step: int, what: str) -> bool:
        """Whether this is the second twin, and differs in `what`."""
        return self.second and step >= self.plan.start and self.plan.differ == what

    def _passed(self, name: str, ctx: Any, args: Mapping[str, Any], value: Any) -> Any:
        if ctx.identity is not None:
            self.room.keys[ctx.peer] = ctx.identity
        if name == "gradient" and self.differs(ctx.step, "gradient"):
            value = torch.nextafter(value, torch.full_like(value, torch.inf))
        if name == "accuse" and self.loyal:
            value = without_fellows(value, frozenset(self.room.members))
        return super()._passed(name, ctx, args, value)


class Forgetful(Identity):
    """A key whose holder derives other secrets from it, from step `start` on, than a peer of the protocol does."""

    start: int

    def secret(self, *fields: str | int, epoch: bytes) -> bytes:
        usual = super().secret(*fields, epoch=epoch)
        step = fields[2]
        return digest("twin", usual) if isinstance(step, int) and step >= self.start else usual


class Twins(Peer):
    """A peer in a cohort that is two: itself, and `other`, which serves the honest peers that `plan.to` names.

    Up to step `plan.start` both hear everything, and are one. A twin that leaves the phase of the honest peers, or
    whose code fails, is dead; the next step goes on with the other one alone.
    """

    other: Peer
    plan: Twin
    room: Room
    lives: set[int]
    """0: this one, 1: the other one, as long as they are not dead."""

    @classmethod
    def of(cls, peer: Peer, plan: Twin, room: Room, *, loyal: bool) -> Twins:
        """Twins in the place of `peer`, which has not begun a step."""

        def copy(kind: type[Peer], identity: Identity, behaviour: Twinned) -> Any:
            shared = peer.commitments, peer.memory
            return kind(peer.id, identity, peer.roster, peer.config, peer.d, behaviour, *shared)

        identity = peer.identity
        if plan.differ == "secrets":
            identity = Forgetful.from_seed(peer.config.run_id, peer.id)
            assert isinstance(identity, Forgetful)
            identity.start = plan.start
        made: Twins = copy(cls, peer.identity, Twinned(room, plan, loyal=loyal))
        made.other = copy(Peer, identity, Twinned(room, plan, loyal=loyal, second=True))
        made.plan, made.room = plan, room
        made.lives = {0, 1}
        return made

    @property
    def survivor(self) -> Peer:
        """The twins that continue after a step: both, or the one that is not dead."""
        return self if self.lives != {1} else self.other

    def receive(self, request: JoinRequest) -> bool:
        """Both hear of it, unless they differ in exactly that."""
        if not (self.plan.differ == "requests" and self.t >= self.plan.start):
            self.other.receive(request)
        return super().receive(request)

    def step(self) -> Generator[Effect, Any, Outcome | None]:
        """One step of both in lockstep. None if neither reaches its end."""
        running = {0: super().step(), 1: self.other.step()}
        running = {which: running[which] for which in sorted(self.lives)}
        answers: dict[int, Any] = dict.fromkeys(running)
        outcomes: dict[int, Outcome | None] = {}
        parted = self.t >= self.plan.start
        served, sees = self._halves() if parted and len(running) == 2 else (frozenset(), {})
        while running:
            effects: dict[int, Effect] = {}
            for which in list(running):
                try:
                    effect = running[which].send(answers[which])
                except StopIteration as stop:
                    outcomes[which] = stop.value
                    del running[which]
                    continue
                except FAILURES as error:
                    self.room.crashes.append(f"twin: {type(error).__name__}: {error}")
                    del running[which]
                    continue
                if effect.phase == self.room.phase:
                    effects[which] = effect
                else:
                    running.pop(which).close()
            if not effects:
                break
            said = self._merged(effects, served)
            answer = yield said
            answers = {
                which: self._computed(which, effect, said, answer)
                if isinstance(effect, Compute | Idle | Measure)
                else self._heard(effect, answer, sees.get(which))
                for which, effect in effects.items()
            }
        self.lives = {which for which, outcome in outcomes.items() if outcome is not None}
        return next((outcomes[which] for which in sorted(self.lives)), None)

    def _halves(self) -> tuple[frozenset[int], dict[int, frozenset[int] | None]]:
        """The peers that the second twin serves, and those that each of them hears directly; None: all."""
        honest = [p for p in self.active if p not in self.room.members]
        served = frozenset(RECIPIENTS[self.plan.to](honest, self.plan.pick))
        if self.plan.sees == "all":
            return served, {}
        return served, {0: frozenset(honest) - served, 1: served}

    def _merged(self, effects: Mapping[int, Effect], served: frozenset[int]) -> Effect:
        """What the peer says that both twins are: each twin speaks to its part, the first also to all others."""
        first, second = effects.get(0), effects.get(1)
        if first is None or second is None:
            [only] = effects.values()
            return only
        if isinstance(first, Compute | Idle | Measure):
            return second if isinstance(first, Idle) else first
        if isinstance(first, Together) and isinstance(second, Together):
            pairs: Any = zip(first.effects, second.effects, strict=True)
            merged: Any = tuple(self._merged({0: a, 1: b}, served) for a, b in pairs)
            return Together(first.phase, merged)
        if isinstance(first, Broadcast) and isinstance(second, Broadcast):
            faces = dict.fromkeys(served, second.message)
            return Broadcast(first.phase, first.message, faces, first.limit, first.load)
        if isinstance(first, Exchange) and isinstance(second, Exchange):
            packets = {to: items for to, items in first.packets.items() if to not in served}
            packets |= {to: items for to, items in second.packets.items() if to in served}
            if isinstance(first, Relay) and isinstance(second, Relay):
                both = {"quiet": first.quiet and second.quiet, "settled": first.settled and second.settled}
                return replace(first, packets=packets, proof=first.proof or second.proof, **both)
            return Exchange(first.phase, packets, first.limit, first.load)
        assert isinstance(first, Compare) and isinstance(second, Compare)
        return Compare(first.phase, first.vouch, dict.fromkeys(served, second.vouch))

    def _computed(self, which: int, effect: Compute | Idle | Measure, said: Effect, answer: Any) -> Any:
        """The requested gradient, if this twin wants it and should have it."""
        trains = isinstance(effect, Compute) and effect.purpose is Purpose.TRAIN
        slow = which == 1 and trains and self.t >= self.plan.start and self.plan.differ == "late"
        return answer if effect == said and not slow else None

    def _heard(self, effect: Effect, answer: Mapping[int, Any], sees: frozenset[int] | None) -> Mapping[int, Any]:
        """What a twin hears of the `answer` to both, and itself."""
        if answer is QUIET:
            return QUIET
        heard = {
            sender: letter
            for sender, letter in answer.items()
            if sender != self.id and (sees is None or sender in sees or sender in self.room.members)
        }
        effects = effect.effects if isinstance(effect, Together) else (effect,)
        said = tuple(getattr(one, "message", None) or getattr(one, "vouch", None) for one in effects)
        own = Bundle(said) if isinstance(effect, Together) else said[0]
        return heard if own is None else {**heard, self.id: own}
