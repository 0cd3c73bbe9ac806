"""What a peer says in one phase, to whom, and how large it is; for drivers with a wire, also as bytes and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from msgspec import Struct
from msgspec.structs import replace

from btard.protocol.effects import Broadcast, Compare, Effect, Exchange, Relay, Speech, Together
from btard.protocol.envelope import (
    bundled,
    decode_items,
    decode_signed,
    decode_vouch,
    encode_items,
    encode_signed,
    unbundled,
)
from btard.protocol.signed import Bundle, Packet, Relayed, Signed, Vouch
from btard.protocol.wire import Malformed

Plain = Signed | Vouch | Sequence[Packet | Relayed]
"""A broadcast, a word on what was heard, or the items of an exchange."""
Letter = Plain | Bundle
Pieces = Sequence[bytes | memoryview]
"""A letter as bytes, in pieces that are joined on the way."""


class Letters(Struct, frozen=True, eq=False):
    """The letters of one peer in one phase: `special` to single recipients, `common` to all others; None is nothing."""

    effect: Speech
    common: Letter | None
    special: Mapping[int, Letter | None]
    limit: int
    """Number of bytes that the peer reads from one sender; a longer letter counts as none."""
    several: tuple[Letters, ...] = ()
    """What is bundled in them."""
    exchanged: bool = False
    """Whether these are packets for single recipients, rather than something for everybody."""
    _sizes: dict[int, int] = {}

    @staticmethod
    def of(effect: Effect) -> Letters:
        """What the peer that asks for `effect` says. Errors: TypeError for an effect that sends nothing."""
        if isinstance(effect, Compare):
            return Letters(effect, effect.vouch, effect.faces, Vouch.nbytes)
        if isinstance(effect, Broadcast):
            return Letters(effect, effect.message, effect.faces, effect.limit)
        if isinstance(effect, Exchange):
            return Letters(effect, None, effect.packets, effect.limit, exchanged=True)
        if isinstance(effect, Together):
            return Letters._bundled(effect, tuple(map(Letters.of, effect.effects)))
        raise TypeError(f"no driver answers {type(effect).__name__}")

    @staticmethod
    def _bundled(effect: Together, several: tuple[Letters, ...]) -> Letters:
        made: dict[tuple[int, ...], Bundle | None] = {}

        def bundle(*letters: Letter | None) -> Bundle | None:
            """One bundle for all recipients of the same letters: it is measured and encoded once."""
            same = tuple(map(id, letters))
            if same not in made:
                made[same] = None if all(letter is None for letter in letters) else Bundle(letters)
            return made[same]

        recipients = dict.fromkeys(to for said in several for to in said.special)
        common = bundle(*(said.common for said in several))
        special = {to: bundle(*[said.special.get(to, said.common) for said in several]) for to in recipients}
        limit = Bundle.sized(said.limit for said in several)
        return Letters(effect, common, special, limit, several, any(said.exchanged for said in several))

    @property
    def of_one_outside(self) -> Letters:
        """What is left of these letters if the peer is not in the step: its word on what it heard before."""
        if isinstance(self.effect, Together):
            return self._bundled(self.effect, tuple(said.of_one_outside for said in self.several))
        return replace(self, common=None, special={}) if isinstance(self.effect, Broadcast) else self

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
    def broadcast(self) -> bool:
        """Whether something for everybody is among these letters, other than a word on what was heard."""
        return isinstance(self.effect, Broadcast) or any(said.broadcast for said in self.several)

    @property
    def own(self) -> Letter | None:
        """What the peer hears from itself: what it says to everybody, within the limit that applies to all."""
        return self.read(self.common, self)

    def read(self, letter: Letter | None, reader: Letters) -> Letter | None:
        """What the peer of the letters `reader` reads of `letter`, one of these: nothing of one that is too long."""
        if letter is None or self.size(letter) > reader.limit:
            return None
        if not isinstance(letter, Bundle):
            return letter
        fits = [self.size(one) <= said.limit for one, said in zip(letter.letters, reader.several, strict=True)]
        if all(fits):
            return letter
        return Bundle(tuple(one if fit else None for one, fit in zip(letter.letters, fits, strict=True)))

    def size(self, letter: Letter | None) -> int:
        """Bytes of one of these letters; a letter to many is measured once."""
        size = self._sizes.get(id(letter))
        if size is None:
            size = self._sizes[id(letter)] = self._measured(letter)
        return size

    def _measured(self, letter: Letter | None) -> int:
        if letter is None:
            return 0
        if isinstance(letter, (Signed, Vouch)):
            return letter.nbytes
        if isinstance(letter, Bundle):
            return Bundle.sized(map(self.size, letter.letters))
        return sum(item.nbytes for item in letter)

    def nbytes(self, others: Collection[int]) -> int:
        """Bytes that the peer puts on the wire if `others` take part in the phase: a copy for each recipient."""
        reached = self.special if self.exchanged else self.special.keys() & others
        usual = 0 if self.common is None else self.size(self.common) * sum(to not in reached for to in others)
        return usual + sum(self.size(self.special[to]) for to in reached)

    def encoded(self) -> tuple[Pieces | None, dict[int, Pieces | None]]:
        """The common letter and the special ones as bytes; a letter to many is encoded once."""
        made: dict[int, Pieces] = {}

        def encode(letter: Letter | None) -> Pieces | None:
            if letter is None:
                return None
            if isinstance(letter, Bundle):
                return bundled([encode(one) for one in letter.letters])
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
        view = memoryview(body)
        if isinstance(self.effect, Compare):
            return decode_vouch(view)
        if isinstance(self.effect, Broadcast):
            message = decode_signed(view, self.limit)
            if message.nbytes > self.limit:
                raise Malformed(f"broadcast: at most {self.limit} bytes are allowed")
            return message
        if isinstance(self.effect, Exchange):
            items = decode_items(view, self.limit)
            return tuple(on_device(device, item) if isinstance(item, Packet) else item for item in items)
        found: list[Letter | None] = []
        for said, one in zip(self.several, unbundled(view, len(self.several)), strict=True):
            try:
                found.append(None if one is None else said._decode(one, device))
            except Malformed:  # one that means nothing does not take the others with it
                found.append(None)
        return Bundle(tuple(found))


def _encode(letter: Plain) -> Pieces:
    if isinstance(letter, Signed):
        return [encode_signed(letter)]
    return [letter.signature] if isinstance(letter, Vouch) else encode_items(letter)


def on_device(device: torch.device, packet: Packet) -> Packet:
    """The packet with its tensor, if it has one, on `device`."""
    if device.type == "cpu" or not isinstance(packet.body, torch.Tensor):
        return packet
    return Packet(packet.kind, packet.sender, packet.step, packet.part, packet.body.to(device), packet.signed)
