"""Peers that sign what is no message of the phase, or a message with impossible values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from btard.attacks.base import Attack, option
from btard.attacks.senders import BROADCASTS
from btard.attacks.speech import Said, Sign, named, signed_bytes
from btard.protocol.behaviour import Context
from btard.protocol.limits import Limits
from btard.protocol.messages import GUILTY, Announce, AnnouncedPart, Claim, Claims, CoinReveal, Commit, Report, Votes
from btard.protocol.signed import Signed


@dataclass(kw_only=True, eq=False)
class Garbage(Attack):
    """Signs bytes that are no message of the phase.

    Formula: bytes that are no msgpack; lists in lists in lists; the payload of another phase; none at all; ten times
    the allowed size (which is not read, so the peer counts as silent)

    Source: ours.
    """

    name = "garbage"
    level = "protocol"
    phase: str = option("report", "the broadcast", choices=BROADCASTS)
    what: str = option(
        "bytes", "what is signed", choices=("bytes", "nested", "foreign", "empty", "oversize", "extension")
    )

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Sign) -> Said:
        if named(phase) != self.phase or message is None or ctx.config is None:
            return message, {}
        payloads = {
            "bytes": b"\xc1\xff\x00 not msgpack",
            "nested": b"\x91" * 500 + b"\x90",
            "foreign": b"\xa5hello",
            "empty": b"",
            "oversize": bytes(10 * Limits(ctx.config.peers, ctx.config.directions).message(type(payload))),
            "extension": b"\xd6\xff\x00\x00\x00\x00",
        }
        return signed_bytes(ctx, phase, payloads[self.what]), {}


def _twisted(payload: Any, how: str, ctx: Context) -> Any:
    """`payload` changed in the way `how`, if it belongs to the phase that this concerns; else unchanged."""
    record, k = ctx.record, ctx.record.cut.k if ctx.record.split is not None else 0
    peers = len(record.active)
    if isinstance(payload, Commit) and how == "commit_short":
        return replace(payload, digests=payload.digests[:-1])
    if isinstance(payload, Announce) and payload.parts:
        first = payload.parts[0]
        changed: dict[str, tuple[AnnouncedPart, ...]] = {
            "announce_foreign_part": (replace(first, part=(first.part + 1) % k),),
            "announce_part_out_of_range": (replace(first, part=k + 7),),
            "announce_twice": (first, first),
            "announce_unknown_sender": (replace(first, senders=(*first.senders, 10**6)),),
            "announce_unsorted": (replace(first, senders=first.senders[::-1]),),
            "announce_nobody": (replace(first, senders=()),),
        }
        return Announce((*changed[how], *payload.parts[1:])) if how in changed else payload
    if isinstance(payload, CoinReveal):
        missing = {"lacks_unknown_part": (10**6,), "lacks_part_often": (0,) * 100, "lacks_own_part": tuple(range(k))}
        return replace(payload, missing=missing[how]) if how in missing else payload
    if isinstance(payload, Report):
        rows = len(payload.norms)
        reports = {
            "report_short": replace(payload, norms=payload.norms[:-1]),
            "report_negative": replace(payload, norms=(-1.0,) * rows),
            "report_nan": replace(payload, norms=(float("nan"),) * rows),
            "report_overflow": replace(payload, products=tuple((1.7e308,) * len(row) for row in payload.products)),
            "report_directions": replace(payload, products=tuple((*row, 0.0) for row in payload.products)),
            "report_pretext": replace(payload, missing=tuple(sorted(record.announced))),
        }
        return reports.get(how, payload)
    if isinstance(payload, Claims):
        honest = next(peer for peer in record.workers if peer != ctx.peer)
        real = Claim(ctx.step, honest, "withheld_aggregate", 10**6)
        parts = [part for part, owner in enumerate(record.owners) if owner == honest]
        watched = record.assignments.get(ctx.peer)
        worked = ctx.last.workers if ctx.last is not None else record.workers
        unwatched = next(peer for peer in worked if peer not in (ctx.peer, watched))
        claims = {
            "claim_unknown_peer": (replace(real, accused=10**6),),
            "claim_part_out_of_range": (real,),
            "claim_oneself": (replace(real, accused=ctx.peer, part=0),),
            "claim_future": (replace(real, step=ctx.step + 5, part=0),),
            "claim_not_lacked": tuple(replace(real, kind="bad_aggregate", part=part) for part in parts),
            "claim_of_owner": tuple(replace(real, kind="misreport", part=part) for part in parts),
            "claim_of_validator": (Claim(ctx.step - 1, unwatched, "wrong_gradient"),),
            "claim_too_many": tuple(replace(real, part=i) for i in range(Limits(peers, 1).claims + 1)),
        }
        return Claims(claims[how]) if how in claims else payload
    if isinstance(payload, Votes) and how == "votes_short":
        return replace(payload, verdicts=payload.verdicts[:-1])
    if isinstance(payload, Votes) and how == "votes_long":
        return replace(payload, verdicts=(*payload.verdicts, GUILTY))
    return payload


TWISTS = (
    "commit_short",
    "announce_foreign_part",
    "announce_part_out_of_range",
    "announce_twice",
    "announce_unknown_sender",
    "announce_unsorted",
    "announce_nobody",
    "lacks_unknown_part",
    "lacks_part_often",
    "lacks_own_part",
    "report_short",
    "report_negative",
    "report_nan",
    "report_overflow",
    "report_directions",
    "report_pretext",
    "claim_unknown_peer",
    "claim_part_out_of_range",
    "claim_oneself",
    "claim_future",
    "claim_not_lacked",
    "claim_of_owner",
    "claim_of_validator",
    "claim_too_many",
    "votes_short",
    "votes_long",
)


@dataclass(kw_only=True, eq=False)
class MalformedMessage(Attack):
    """Sends validly signed and encoded messages with impossible values.

    Formula: one value of the phase's message changed, as its name says; votes need somebody's accusation

    Source: ours.
    """

    name = "malformed_message"
    level = "protocol"
    how: str = option("report_negative", "what is wrong with it", choices=TWISTS)

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Sign) -> Said:
        if message is None:
            return message, {}
        twisted = _twisted(payload, self.how, ctx)
        return (message if twisted is payload else sign(twisted)), {}
