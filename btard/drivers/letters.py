"""What a peer says in one phase, to whom, and how large it is; for drivers with a wire, also as bytes and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from msgspec import Struct
from msgspec.structs import replace

from btard.protocol.effects import Broadcast, Compare, Effect, Exchange, Relay
from btard.protocol.envelope import (
    decode_items,
    decode_signed,
    decode_vouch,
    encode_items,
    encode_signed,
    join_vouch,
    split_joined,
)
from btard.protocol.messages import JOINED_OVERHEAD, Joined, Packet, Relayed, Signed, Vouch
from btard.protocol.wire import Malformed

Plain = Signed | Vouch | Sequence[Packet | Relayed]
"""A broadcast, a word on what was heard, or the items of an exchange."""
Letter = Plain | Joined
"""One of these, or a word on what was heard along with one of the others."""
Pieces = Sequence[bytes | memoryview]
"""A letter as bytes, in pieces that are joined on the way."""


class Letters(Struct, frozen=True, eq=False):
    """The letters of one peer in one phase: `special` to single recipients, `common` to all others; None is nothing."""

    effect: Broadcast | Compare | Exchange
    common: Letter | None
    special: Mapping[int, Letter | None]
    limit: int
    """Number of bytes that the peer reads from one sender; a longer letter counts as none."""
    _sizes: dict[int, int] = {}

    @staticmethod
    def of(effect: Effect) -> Letters:
        """What the peer that asks for `effect` says. Errors: TypeError for an effect that sends nothing."""
        if isinstance(effect, Compare):
            return Letters(effect, effect.vouch, effect.faces, Vouch.nbytes)
        if isinstance(effect, Broadcast):
            said = Letters(effect, effect.message, effect.faces, effect.limit)
        elif isinstance(effect, Exchange):
            said = Letters(effect, None, effect.packets, effect.limit)
        else:
            raise TypeError(f"no driver answers {type(effect).__name__}")
        return said if effect.along is None else said._with(effect.along)

    def _with(self, along: Compare) -> Letters:
        """These letters, each along with the signature that its recipient gets."""

        def join(vouch: Vouch | None, letter: Letter | None) -> Joined | None:
            return None if vouch is None and letter is None else Joined(vouch, letter)

        special = {
            to: join(along.faces.get(to, along.vouch), self.special.get(to, self.common))
            for to in (*self.special, *(to for to in along.faces if to not in self.special))
        }
        return replace(
            self, common=join(along.vouch, self.common), special=special, limit=self.limit + JOINED_OVERHEAD, _sizes={}
        )

    @property
    def of_one_outside(self) -> Letters:
        """What is left of a broadcast of a peer that is not in the step: its word on what it heard before."""
        along = self.effect.along if isinstance(self.effect, Broadcast) else None
        silenced = replace(self, common=None, special={}, limit=self.limit - JOINED_OVERHEAD * (along is not None))
        return silenced if along is None else silenced._with(along)

    @property
    def silent(self) -> bool:
        """Whether the peer says nothing to anybody."""
        return self.common is None and not self.special

    @property
    def settled(self) -> bool:
        """Whether the peer needs nothing from this round of relays or those that follow."""
        return isinstance(self.effect, Relay) and self.effect.settled

    @property
    def done(self) -> bool:
        """Whether the peer says nothing more in this phase's rounds of relays, unless it needs and hears something."""
        return isinstance(self.effect, Relay) and self.effect.quiet

    def shown_to(self, unsettled: Collection[int]) -> Letters:
        """These letters and, if the peer is settled, its certificate for each of the others that are not."""
        proof = self.effect.proof if isinstance(self.effect, Relay) and self.settled else None
        if proof is None or not unsettled:
            return self
        return replace(self, special=dict.fromkeys(unsettled, (proof.look(),)), _sizes={})

    @property
    def phase(self) -> str:
        return self.effect.phase

    @property
    def exchanged(self) -> bool:
        """Whether these are packets for single recipients, rather than something for everybody."""
        return isinstance(self.effect, Exchange)

    @property
    def own(self) -> Letter | None:
        """What the peer hears from itself: what it says to everybody, within the limit that applies to all."""
        return self.common if self.size(self.common) <= self.limit else None

    def size(self, letter: Letter | None) -> int:
        """Bytes of one of these letters; a letter to many is measured once."""
        if letter is None:
            return 0
        if isinstance(letter, Joined):
            return JOINED_OVERHEAD + self.size(letter.letter)
        if isinstance(letter, Signed | Vouch):
            return letter.nbytes
        if id(letter) not in self._sizes:
            self._sizes[id(letter)] = sum(item.nbytes for item in letter)
        return self._sizes[id(letter)]

    def nbytes(self, others: Collection[int]) -> int:
        """Bytes that the peer puts on the wire if `others` take part in the phase: a copy for each recipient."""
        special = {to: letter for to, letter in self.special.items() if self.exchanged or to in others}
        usual = 0 if self.common is None else self.size(self.common) * sum(to not in special for to in others)
        return usual + sum(self.size(letter) for letter in special.values())

    def encoded(self) -> tuple[Pieces | None, dict[int, Pieces | None]]:
        """The common letter and the special ones as bytes; a letter to many is encoded once."""
        made: dict[int, Pieces] = {}

        def encode(letter: Letter | None) -> Pieces | None:
            if letter is None:
                return None
            if isinstance(letter, Joined):
                return [join_vouch(letter.vouch), *(encode(letter.letter) or ())]
            if id(letter) not in made:
                made[id(letter)] = _encode(letter)
            return made[id(letter)]

        return encode(self.common), {to: encode(letter) for to, letter in self.special.items()}

    def answer(self, bodies: Mapping[int, bytearray | memoryview], me: int, device: torch.device) -> dict[int, Any]:
        """What peer `me` hears if these bytes arrive: sender -> letter, with tensors on `device`, and its own.

        Bytes that mean nothing count as silence: what that is worth is for the protocol to say.
        """
        heard: dict[int, Any] = {}
        for sender in sorted(bodies):
            try:
                heard[sender] = self._decode(bodies[sender], device)
            except Malformed:
                continue
        return heard if self.own is None else {**heard, me: self.own}

    def _decode(self, body: bytearray | memoryview, device: torch.device) -> Letter:
        """Tensors on the CPU are views of `body`. Errors: Malformed, also for more than the limit."""
        if isinstance(self.effect, Compare):
            return decode_vouch(memoryview(body))
        if self.effect.along is None:
            return self._decode_alone(memoryview(body), self.limit, device)
        vouch, rest = split_joined(memoryview(body))
        return Joined(vouch, self._decode_alone(rest, self.limit - JOINED_OVERHEAD, device) if len(rest) else None)

    def _decode_alone(self, body: memoryview, limit: int, device: torch.device) -> Plain:
        if isinstance(self.effect, Broadcast):
            message = decode_signed(body, limit)
            if message.nbytes > limit:
                raise Malformed(f"broadcast: at most {limit} bytes are allowed")
            return message
        items = decode_items(body, limit)
        return items if device.type == "cpu" else tuple(_on(device, item) for item in items)


def _encode(letter: Plain) -> Pieces:
    if isinstance(letter, Signed):
        return [encode_signed(letter)]
    return [letter.signature] if isinstance(letter, Vouch) else encode_items(letter)


def _on(device: torch.device, item: Packet | Relayed) -> Packet | Relayed:
    """The item with its tensor, if it has one, on `device`."""
    if isinstance(item, Packet) and isinstance(item.body, torch.Tensor):
        return Packet(item.kind, item.sender, item.step, item.part, item.body.to(device), item.signed)
    return item
