"""Peers that send broken, different or no messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from msgspec.structs import replace

from btard.attacks.base import Attack, option
from btard.protocol.behaviour import Context, View
from btard.protocol.messages import Announce, AnnouncedPart, CoinReveal
from btard.protocol.signed import Packet, Relayed, Signed

GARBAGE = b"\xff not a tensor"

BROADCASTS = ("commit", "announce", "coin_commit", "coin_reveal", "report", "accuse", "vote")
PHASES = (
    "commit",
    "part",
    "announce",
    "aggregate",
    "coin_commit",
    "coin_reveal",
    "report",
    "accuse",
    "evidence",
    "vote",
)
"""In their order; evidence and votes come only in steps with accusations."""

RECIPIENTS = ("one", "several", "most", "all")
"""Which honest peers are the victims in a step: one, two, over half of all active peers, every one."""


def commitment(ctx: Context, kind: str, part: int, body: torch.Tensor | bytes) -> bytes:
    """What the peer announces if it wants to send `body` of `kind` for `part`."""
    if ctx.commitments is None:
        raise RuntimeError("this attack commits by itself: it needs a driver that runs the protocol")
    return ctx.commitments.digest(kind, ctx.peer, ctx.step, part, ctx.record.cut.body(kind, body))


def is_victim(attack: Attack, ctx: Context, recipients: str, peer: int, among: tuple[int, ...]) -> bool:
    """Whether `peer` is a victim: one of the honest peers of `among`, starting from the one that the step draws."""
    members = attack.collusion.members
    honest = sorted(set(among) - members - {ctx.peer})
    if recipients == "all" or not honest:
        return peer in honest
    first = int(attack.collusion.stream("victim", ctx.step, ctx.peer).integers(len(honest)))
    count = {"one": 1, "several": 2, "most": len(ctx.record.remaining) // 2 + 1}[recipients]
    return peer in [honest[(first + offset) % len(honest)] for offset in range(count)]


SPOILED = (
    "other",
    "short",
    "nan",
    "garbage",
    "inf",
    "denormal",
    "float64",
    "float16",
    "int",
    "matrix",
    "scalar",
    "empty",
    "oversize",
)


def spoiled(body: torch.Tensor, send: str) -> torch.Tensor | bytes:
    """A replacement of `body` [p], by its name in SPOILED: other numbers, another form, or no tensor at all."""
    others: dict[str, Callable[[], torch.Tensor | bytes]] = {
        "other": lambda: body * 2 + 1,
        "short": lambda: body[:-1].clone(),
        "nan": lambda: torch.full_like(body, math.nan),
        "inf": lambda: torch.full_like(body, math.inf),
        "denormal": lambda: torch.full_like(body, 1e-40),
        "float64": body.double,
        "float16": body.half,
        "int": body.int,
        "matrix": lambda: body.clone().unsqueeze(0),
        "scalar": lambda: body.new_tensor(1.0),
        "empty": lambda: body.new_empty(0),
        "oversize": lambda: body.new_zeros(10 * (4 * body.numel() + 64)),  # ten times what is read of a packet
        "garbage": lambda: GARBAGE,
    }
    return others[send]()


@dataclass(kw_only=True, eq=False)
class NonFinite(Attack):
    """Commits to a gradient with NaN or infinity, like a diverged peer, or with numbers at the ends of the range.

    Formula: g_i with one entry, or all of them, replaced by NaN, +inf, the largest finite number or a denormal one

    Source: ours; plain averaging never recovers from one such entry. Large and denormal numbers are legal: with them
    this is a wrong gradient like any other.
    """

    name = "non_finite"
    level = "protocol"
    value: str = option("nan", "what is sent", choices=("nan", "inf", "max", "denormal"))
    entries: str = option("one", "one entry, drawn again for each step, or all", choices=("one", "all"))

    def gradient(self, ctx: View, gradient: torch.Tensor) -> torch.Tensor:
        bad = gradient.clone()
        index = int(self.collusion.stream("entry", ctx.step, ctx.peer).integers(bad.numel()))
        chosen = bad if self.entries == "all" else bad[index : index + 1]
        chosen.fill_({"max": torch.finfo(bad.dtype).max, "denormal": 1e-40}.get(self.value) or float(self.value))
        return bad


@dataclass(kw_only=True, eq=False)
class BadPart(Attack):
    """Sends bytes that it did not commit to, or commits to bytes that are no part.

    Formula: 2 g_i[j] + 1; a part of another length, rank or type; NaN, infinity, denormals; ten times what is read; no
    tensor at all; `unsigned`: with a signature that is none. With `committed` the hash is that of what is sent

    Source: ours, after Gorbunov et al., ICML 2022: the reason for commitments.

    Without a good signature, and where too much is sent to be read, there is no evidence: it counts as withheld.
    """

    name = "bad_part"
    level = "protocol"
    recipients: str = option("all", "which honest owners get it in a step", choices=RECIPIENTS)
    send: str = option("other", "what they get", choices=(*SPOILED, "unsigned"))
    committed: bool = option(False, "whether the commitments are to it; then everybody gets it")

    def commit(self, ctx: Context, digests: tuple[bytes, ...]) -> tuple[bytes, ...]:
        if not self.committed or self.send == "unsigned":
            return digests
        cut, chosen = ctx.record.cut, list(digests)
        for part in range(cut.k):
            body = spoiled(torch.ones(cut.size(part)), self.send)
            chosen[part] = commitment(ctx, "part", part, body)
        return tuple(chosen)

    def part(self, ctx: Context, part: int, body: torch.Tensor) -> torch.Tensor | bytes:
        if self.send == "unsigned":
            return body
        if self.committed:
            return spoiled(torch.ones_like(body), self.send)
        wronged = is_victim(self, ctx, self.recipients, ctx.record.owner(part), ctx.record.owners)
        return spoiled(body, self.send) if wronged else body

    def dispatch(
        self, ctx: Context, phase: str, packets: Mapping[int, Sequence[Packet]]
    ) -> Mapping[int, Sequence[Packet]]:
        if self.send != "unsigned" or phase != "part":
            return packets
        owners = ctx.record.owners
        wronged = [owner for owner in packets if is_victim(self, ctx, self.recipients, owner, owners)]
        return {**packets, **{owner: [_unsigned(item) for item in packets[owner]] for owner in wronged}}


def _unsigned(packet: Packet) -> Packet:
    """A packet with other numbers, and a signature that nobody made."""
    body = packet.body * 2 + 1 if isinstance(packet.body, torch.Tensor) else packet.body
    return replace(packet, body=body, signed=bytes(64))


@dataclass(kw_only=True, eq=False)
class WithheldPart(Attack):
    """Commits to its gradient and does not send the parts.

    Formula: nothing instead of g_i[j]

    Source: Gorbunov et al., ICML 2022, ELIMINATE.
    """

    name = "withheld_part"
    level = "protocol"
    recipients: str = option("one", "which honest owners get nothing in a step", choices=RECIPIENTS)

    def part(self, ctx: Context, part: int, body: torch.Tensor) -> torch.Tensor | None:
        wronged = is_victim(self, ctx, self.recipients, ctx.record.owner(part), ctx.record.owners)
        return None if wronged else body


@dataclass(kw_only=True, eq=False)
class BadAggregate(Attack):
    """Sends some peers an aggregate that it did not announce, or announces bytes that are no aggregate.

    Formula: the same instead of a[j] as bad_part sends instead of g_i[j]. With `announced` the hash is that of it

    Source: ours, after Gorbunov et al., ICML 2022: the reason for announcing the aggregate's hash.
    """

    name = "bad_aggregate"
    level = "protocol"
    recipients: str = option("one", "which honest peers get it in a step", choices=RECIPIENTS)
    send: str = option("other", "what they get", choices=SPOILED)
    announced: bool = option(False, "whether the announced hash is that of what is sent")

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | bytes:
        wronged = is_victim(self, ctx, self.recipients, recipient, ctx.record.remaining)
        if not wronged:
            return value
        return spoiled(torch.ones_like(value) if self.announced else value, self.send)

    def say(
        self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Callable[[Any], Signed]
    ) -> tuple[Signed | None, Mapping[int, Signed | None]]:
        if not self.announced or not isinstance(payload, Announce):
            return message, {}

        def false(entry: AnnouncedPart) -> AnnouncedPart:
            body = spoiled(torch.ones(ctx.record.cut.size(entry.part)), self.send)
            return replace(entry, digest=commitment(ctx, "aggregate", entry.part, body))

        return sign(Announce(tuple(false(entry) for entry in payload.parts))), {}


@dataclass(kw_only=True, eq=False)
class WithheldAggregate(Attack):
    """Announces an aggregate and does not send it.

    Formula: nothing instead of a[j]

    Source: Gorbunov et al., ICML 2022, ELIMINATE.
    """

    name = "withheld_aggregate"
    level = "protocol"
    recipients: str = option("one", "which honest peers get nothing in a step", choices=RECIPIENTS)

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        wronged = is_victim(self, ctx, self.recipients, recipient, ctx.record.remaining)
        return None if wronged else value


@dataclass(kw_only=True, eq=False)
class Silent(Attack):
    """Says nothing to anybody in one phase of the step, or from that phase on.

    Formula: nothing instead of the phase's message; with `onwards` nothing ever again

    Source: ours; a peer whose network is gone looks like this.

    Who only misses the commitment is absent for the step (its gradient came too late); who says nothing in another
    broadcast, or sends its part or aggregate to nobody, is removed.
    """

    name = "silent"
    level = "protocol"
    phase: str = option("commit", "where it is silent", choices=PHASES)
    onwards: bool = option(False, "whether it stays silent")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gone = False

    def say(
        self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Callable[[Any], Signed]
    ) -> tuple[Signed | None, Mapping[int, Signed | None]]:
        return (None if self._silent(phase) else message), {}

    def relay(
        self, ctx: Context, phase: str, round: int, outgoing: Mapping[int, Sequence[Relayed]]
    ) -> Mapping[int, Sequence[Relayed]]:
        return {} if self.gone else outgoing

    def dispatch(
        self, ctx: Context, phase: str, packets: Mapping[int, Sequence[Packet]]
    ) -> Mapping[int, Sequence[Packet]]:
        return {} if self._silent(phase) else packets

    def _silent(self, phase: str) -> bool:
        here = phase.partition("/")[0] == self.phase
        self.gone |= self.onwards and here
        return here or self.gone


@dataclass(kw_only=True, eq=False)
class Crash(Attack):
    """Dies in a phase, as after kill -9: nobody hears from it again.

    Formula: the end

    Source: ours.
    """

    name = "crash"
    level = "protocol"
    phase: str = option("commit", "where it dies", choices=PHASES)

    def crashed(self, ctx: Context, phase: str) -> bool:
        return phase.partition("/")[0] == self.phase


@dataclass(kw_only=True, eq=False)
class WrongReveal(Attack):
    """Reveals a coin value that it did not commit to, to steer the coin after seeing the others.

    Formula: (u_i with all bits flipped, salt_i) instead of (u_i, salt_i)

    Source: Gorbunov et al., ICML 2022, MPRNG.
    """

    name = "wrong_reveal"
    level = "protocol"

    def reveal(self, ctx: Context, reveal: CoinReveal) -> CoinReveal:
        return replace(reveal, value=bytes(byte ^ 0xFF for byte in reveal.value))
