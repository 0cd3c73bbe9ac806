"""What attacks on broadcasts have in common: whom they aim at, and messages and relays that they sign by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from btard.attacks.base import Attack
from btard.protocol.behaviour import Context
from btard.protocol.identity import Identity
from btard.protocol.signed import Relayed, Signed, relay_digest

Sign = Callable[[Any], Signed]
Said = tuple[Signed | None, Mapping[int, Signed | None]]
"""What everybody receives, and what single recipients receive instead."""
Relays = Mapping[int, Sequence[Relayed]]
Compared = tuple[bytes | None, Mapping[int, bytes | None]]
"""What everybody is told that the peer heard, and what single recipients are told instead."""


def named(phase: str) -> str:
    """The phase without the number of its attempt or round."""
    return phase.partition("/")[0]


def honest_others(attack: Attack, ctx: Context) -> list[int]:
    """Honest peers that are still there, ascending."""
    return [peer for peer in ctx.record.remaining if peer not in attack.collusion.members]


def fellows_of(attack: Attack, ctx: Context) -> list[int]:
    """The other attackers that are still there and whose keys are known, ascending."""
    keys = identities(attack)
    return [peer for peer in ctx.record.remaining if peer in keys and peer != ctx.peer]


def identities(attack: Attack) -> dict[int, Identity]:
    """The keys of the attackers that have spoken so far."""
    empty: dict[int, Identity] = {}
    return attack.collusion.constant("identities", lambda: empty)


def signed_bytes(ctx: Context, phase: str, payload: bytes, *, sender: int | None = None) -> Signed:
    """A message of any bytes with this peer's signature, by default in its own name."""
    unsigned = Signed(ctx.peer if sender is None else sender, ctx.step, phase, payload, b"")
    if ctx.identity is None:
        raise RuntimeError("this attack signs by itself: it needs a driver that runs the protocol")
    return replace(unsigned, signed=ctx.identity.sign(unsigned.digest(ctx.record.context)))


def passed_through(attack: Attack, ctx: Context, message: Signed, relayers: Sequence[int]) -> Relayed:
    """`message` with the signatures of fellows, as if they had passed it on."""
    keys, signed = identities(attack), relay_digest(message.digest(ctx.record.context))
    return Relayed(message, tuple((peer, keys[peer].sign(signed)) for peer in relayers))


def added(outgoing: Relays, recipients: Sequence[int], *items: Relayed) -> Relays:
    """`outgoing` with additional `items` for `recipients`."""
    return {**outgoing, **{peer: (*outgoing.get(peer, ()), *items) for peer in recipients}}
