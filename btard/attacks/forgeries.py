"""Peers that send what is not theirs or not of this moment: replays, forgeries, junk relays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from btard.attacks.base import Attack, option
from btard.attacks.senders import BROADCASTS
from btard.attacks.speech import Compared, Relays, Said, Sign, added, honest_others, named, signed_bytes
from btard.protocol.behaviour import Context
from btard.protocol.hashing import digest
from btard.protocol.signed import Packet, Relayed, Signed, relay_digest


@dataclass(kw_only=True, eq=False)
class Replay(Attack):
    """Sends an earlier message instead of the one that is due.

    Formula: step: its own message of the same phase of the step before; phase: its own commitment of this step; others:
    besides its own, relays what honest peers said in the step before; packets: its parts and aggregates of the step
    before

    Source: ours: why signatures are bound to the run, the step, the phase and the history.
    """

    name = "replay"
    level = "protocol"
    phase: str = option("report", "the broadcast that is replaced", choices=BROADCASTS)
    what: str = option("step", "what is sent again", choices=("step", "phase", "others", "packets"))

    def __post_init__(self) -> None:
        super().__post_init__()
        self._sent: dict[str, Mapping[int, Sequence[Packet]]] = {}

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Sign) -> Said:
        if named(phase) != self.phase or message is None:
            return message, {}
        if self.what == "step":
            return self._earlier(ctx, phase).get(ctx.peer, message), {}
        if self.what == "phase":
            return next(iter(ctx.record.heard.get("commit", {}).get(ctx.peer, ())), message), {}
        return message, {}

    def compare(self, ctx: Context, phase: str, view: bytes) -> Compared:
        return (None if self.what == "others" else view), {}  # with a certificate nobody listens

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Relays) -> Relays:
        if self.what != "others" or ctx.identity is None:
            return outgoing
        own = ctx.identity
        items = [
            Relayed(message, ((ctx.peer, own.sign(relay_digest(message.digest(context)))),))
            for message in self._earlier(ctx, phase).values()
            for context in (ctx.record.context, ctx.last.context if ctx.last else b"")
        ]
        return added(outgoing, honest_others(self, ctx), *items)

    def dispatch(
        self, ctx: Context, phase: str, packets: Mapping[int, Sequence[Packet]]
    ) -> Mapping[int, Sequence[Packet]]:
        if self.what != "packets" or phase not in ("part", "aggregate"):
            return packets
        earlier = self._sent.get(phase, {})
        self._sent[phase] = packets
        return earlier or packets

    def _earlier(self, ctx: Context, phase: str) -> dict[int, Signed]:
        """Sender -> its message of this phase of the step before."""
        heard = ctx.last.heard.get(phase, {}) if ctx.last is not None else {}
        return {sender: messages[0] for sender, messages in heard.items() if messages}


@dataclass(kw_only=True, eq=False)
class Forgery(Attack):
    """Sends messages that nobody signed.

    Formula: signature: its own message with a wrong signature; name: in place of its own, a message in an honest peer's
    name; relays: besides its own, relays of such messages

    Source: ours: the named peer must not pay for it.
    """

    name = "forgery"
    level = "protocol"
    phase: str = option("report", "the broadcast", choices=BROADCASTS)
    what: str = option("signature", "what is forged", choices=("signature", "name", "relays"))

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Sign) -> Said:
        if named(phase) != self.phase or message is None or self.what == "relays":
            return message, {}
        if self.what == "signature":
            return replace(message, signed=bytes(64)), {}
        return replace(message, sender=honest_others(self, ctx)[0]), {}

    def compare(self, ctx: Context, phase: str, view: bytes) -> Compared:
        return (None if self.what == "relays" else view), {}  # with a certificate nobody listens

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Relays) -> Relays:
        if self.what != "relays" or named(phase) != self.phase or ctx.identity is None:
            return outgoing
        for victim in honest_others(self, ctx)[:2]:
            message = signed_bytes(ctx, phase, b"\x90", sender=victim)
            seen = ctx.identity.sign(relay_digest(message.digest(ctx.record.context)))
            outgoing = added(outgoing, honest_others(self, ctx), Relayed(message, ((ctx.peer, seen),)))
        return outgoing


@dataclass(kw_only=True, eq=False)
class JunkRelays(Attack):
    """Pretends to have heard something else and floods the rounds of relays with junk.

    Formula: a wrong digest in every comparison; `items` relays per recipient and round with chains that are too short,
    forged, endless or the sender's own, and a relay where packets are due

    Source: ours. It costs the others work and nothing else.
    """

    name = "junk_relays"
    level = "protocol"
    items: int = option(20, "relays per recipient and round", low=1)

    def compare(self, ctx: Context, phase: str, view: bytes) -> Compared:
        return digest("not what I heard", view), {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Relays) -> Relays:
        genuine = [messages[0] for messages in ctx.record.heard[phase].values() if messages]
        if not genuine or ctx.identity is None:
            return outgoing
        mine = signed_bytes(ctx, phase, b"\x90")
        chains: list[tuple[tuple[int, bytes], ...]] = [
            (),
            ((ctx.peer, bytes(64)),),
            tuple((peer, bytes(64)) for peer in ctx.record.remaining),
            ((ctx.peer, bytes(64)),) * 100,
            ((10**6, b""),),
        ]
        sources = [*genuine, mine, replace(mine, phase="other"), replace(mine, step=0)]
        junk = [
            Relayed(sources[i % len(sources)], chains[(i // len(sources) + i) % len(chains)]) for i in range(self.items)
        ]
        return added(outgoing, honest_others(self, ctx), *junk)

    def dispatch(self, ctx: Context, phase: str, packets: Mapping[int, Sequence[Any]]) -> Mapping[int, Sequence[Any]]:
        stray = Relayed(signed_bytes(ctx, phase, b"\x90"), ())
        return {peer: [stray, *packets.get(peer, ())] for peer in ctx.record.remaining if peer != ctx.peer}
