"""Peers that abuse the broadcasts: two faces, selective silence, replays, forgeries, malformed messages, junk relays.

What fellows hand to each other beside the protocol lies in the memory of their `Collusion`, so those that need it
(named in their docstrings) work where all attackers live in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from btard.attacks.base import Attack, option
from btard.attacks.senders import BROADCASTS
from btard.protocol.behaviour import Context
from btard.protocol.certificate import certify
from btard.protocol.coin import combine
from btard.protocol.hashing import digest
from btard.protocol.identity import Identity
from btard.protocol.limits import Limits
from btard.protocol.messages import (
    FALSE_CLAIM,
    GUILTY,
    NOBODY,
    Announce,
    AnnouncedPart,
    Claim,
    Claims,
    CoinCommit,
    CoinReveal,
    Commit,
    Packet,
    Relayed,
    Report,
    Signed,
    Votes,
    relay_digest,
)
from btard.protocol.wire import Malformed

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
    return replace(unsigned, signature=ctx.identity.sign(unsigned.digest(ctx.record.context)))


def passed_through(attack: Attack, ctx: Context, message: Signed, relayers: Sequence[int]) -> Relayed:
    """`message` with the signatures of fellows, as if they had passed it on."""
    keys, signed = identities(attack), relay_digest(message.digest(ctx.record.context))
    return Relayed(message, tuple((peer, keys[peer].sign(signed)) for peer in relayers))


def added(outgoing: Relays, recipients: Sequence[int], *items: Relayed) -> Relays:
    """`outgoing` with additional `items` for `recipients`."""
    return {**outgoing, **{peer: (*outgoing.get(peer, ()), *items) for peer in recipients}}


def another(payload: Any, ctx: Context) -> Any:
    """A second payload of the same phase that is as plausible as `payload`."""
    other = digest("another", ctx.step, ctx.peer)
    if isinstance(payload, Commit):
        return replace(payload, digests=(other, *payload.digests[1:]))
    if isinstance(payload, Announce):
        return Announce(tuple(replace(entry, digest=other) for entry in payload.parts))
    if isinstance(payload, CoinCommit):
        return replace(payload, digest=other)
    if isinstance(payload, CoinReveal):
        return replace(payload, value=other)
    if isinstance(payload, Report):
        return replace(payload, norms=tuple(2 * norm for norm in payload.norms))
    if isinstance(payload, Votes):
        return replace(payload, verdicts=tuple(FALSE_CLAIM if cast == GUILTY else GUILTY for cast in payload.verdicts))
    owners = sorted({ctx.record.owner(part) for part in ctx.record.announced} - {ctx.peer})
    if payload.claims or not owners:
        return Claims(())
    part = next(part for part in ctx.record.announced if ctx.record.owner(part) == owners[0])
    return Claims((Claim(ctx.step, owners[0], "wrong_aggregate", part),))


@dataclass(kw_only=True, eq=False)
class Equivocate(Attack):
    """Says two different things in one broadcast, both validly signed.

    Formula: another plausible message for every second honest peer, or for one; last_round: for one, through fellows
    who have all signed it and hand it over in the last round in which that is accepted; too_late: one round later. In
    both they do not sign what they heard, for with a certificate nobody would listen

    Source: Dolev and Strong, SIAM J. Comput. 1983: why there are as many rounds of relays as Byzantine peers.

    The last two need a fellow, and the memory that they share; without one they are `one`.
    """

    name = "equivocate"
    level = "protocol"
    phase: str = option("report", "the broadcast", choices=BROADCASTS)
    shown: str = option("half", "which peers see the other message", choices=("half", "one", "last_round", "too_late"))

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Sign) -> Said:
        if ctx.identity is not None:
            identities(self)[ctx.peer] = ctx.identity
        if named(phase) != self.phase or message is None:
            return message, {}
        second, honest = sign(another(payload, ctx)), honest_others(self, ctx)
        if second.payload == message.payload:
            return message, {}
        fellows = self.collusion.members & set(ctx.record.remaining) - {ctx.peer}
        if self.shown in ("last_round", "too_late") and self._rounds(ctx) and fellows:
            self._hidden(ctx, phase)[ctx.peer] = second
            return message, {}
        return message, dict.fromkeys(honest[::2] if self.shown == "half" else honest[:1], second)

    def compare(self, ctx: Context, phase: str, view: bytes) -> Compared:
        return (None if self._hidden(ctx, phase) else view), {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Relays) -> Relays:
        for sender, second in self._hidden(ctx, phase).items():
            relayers = [peer for peer in (ctx.peer, *fellows_of(self, ctx)) if peer != sender]
            when = min(len(relayers), self._rounds(ctx)) + (self.shown == "too_late")
            # One of them hands it over for all.
            if ctx.peer == min(relayers, default=NOBODY) and round == when:
                item = passed_through(self, ctx, second, relayers)
                outgoing = added(outgoing, honest_others(self, ctx)[:1], item)
        return outgoing

    def _hidden(self, ctx: Context, phase: str) -> dict[int, Signed]:
        """Sender -> its second face of this phase, which only fellows know."""
        empty: dict[int, Signed] = {}
        return self.collusion.shared(("second face", ctx.step, phase), lambda: empty)

    def _rounds(self, ctx: Context) -> int:
        return ctx.config.rounds if ctx.config is not None else 0


@dataclass(kw_only=True, eq=False)
class SelectiveSilence(Attack):
    """Says everything to one honest peer, or to half of them, and nothing to the rest.

    Formula: nothing instead of the broadcasts, for some recipients

    Source: ours: what relays repair. Nobody is banned for it: links that lose messages look the same.
    """

    name = "selective_silence"
    level = "protocol"
    heard_by: str = option("one", "which honest peers hear it", choices=("one", "half"))

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Sign) -> Said:
        honest = honest_others(self, ctx)
        return message, dict.fromkeys(honest[1:] if self.heard_by == "one" else honest[::2])


@dataclass(kw_only=True, eq=False)
class NoCertificate(Attack):
    """Keeps its signature on what it heard from some peers, so that these have to listen to relays.

    Formula: no signature for all honest peers, for every second one, or for one; in the last round a fellow hands that
    one the certificate that it lacks, with the signatures of all fellows

    Source: ours: what a peer that lies costs the others that cannot be held against it.
    """

    name = "no_certificate"
    level = "protocol"
    denied: str = option("all", "who does not get it", choices=("all", "half", "one"))

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Sign) -> Said:
        if ctx.identity is not None:
            identities(self)[ctx.peer] = ctx.identity
        return message, {}

    def compare(self, ctx: Context, phase: str, view: bytes) -> Compared:
        honest = honest_others(self, ctx)
        denied = {"all": honest, "half": honest[::2], "one": honest[:1]}[self.denied]
        return view, dict.fromkeys(denied)

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Relays) -> Relays:
        last = 1 + (ctx.config.rounds if ctx.config is not None else 0)
        hands = [ctx.peer, *fellows_of(self, ctx)]
        needed = sorted(ctx.record.vouches)
        # One of them hands it over for all.
        if self.denied != "one" or round != last or ctx.identity is None or ctx.peer != min(hands):
            return outgoing
        shown = certify(ctx.record, phase, ctx.peer, ctx.identity, needed)
        return added(outgoing, honest_others(self, ctx)[:1], passed_through(self, ctx, shown, sorted(hands[1:])))


@dataclass(kw_only=True, eq=False)
class LateReveal(Attack):
    """Reveals its coin value after all others have, through a fellow's relay, and only if it likes the coin.

    Formula: the coin is taken if its first bit is 0, otherwise the attacker stays silent and the coin is tossed again

    Source: Cleve, "Limits on the security of coin flips when half the processors are faulty", STOC 1986.

    The fellow does not sign what it heard, so that the peers listen to relays. One attacker so chooses between two
    coins, one of which it does not know yet, and pays with its place. That bias is in every coin of this kind. Needs a
    fellow and the memory that they share; without one it only stays silent.
    """

    name = "late_reveal"
    level = "protocol"

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Sign) -> Said:
        if ctx.identity is not None:
            identities(self)[ctx.peer] = ctx.identity
        if named(phase) != "coin_reveal" or ctx.peer != self._first(ctx):
            return message, {}
        self._kept(ctx, phase)[ctx.peer] = message
        return None, {}

    def compare(self, ctx: Context, phase: str, view: bytes) -> Compared:
        keeps = named(phase) == "coin_reveal" and self._first(ctx) not in ctx.record.heard[phase]
        return (None if keeps else view), {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Relays) -> Relays:
        sender, fellows = self._first(ctx), [peer for peer in self._present(ctx) if peer != self._first(ctx)]
        kept = self._kept(ctx, phase).get(sender)
        if kept is None or round != 1 or ctx.peer != min(fellows, default=NOBODY):
            return outgoing
        said = {peer: messages[0] for peer, messages in ctx.record.heard[phase].items() if messages}
        try:
            reveals = {peer: one.open(CoinReveal, one.nbytes) for peer, one in {**said, sender: kept}.items()}
        except Malformed:
            return outgoing
        if combine(ctx.run_id, ctx.step, reveals)[0] & 1:
            return outgoing
        return added(outgoing, honest_others(self, ctx), passed_through(self, ctx, kept, [ctx.peer]))

    def _present(self, ctx: Context) -> list[int]:
        return [peer for peer in ctx.record.remaining if peer in self.collusion.members]

    def _first(self, ctx: Context) -> int:
        return self._present(ctx)[0]

    def _kept(self, ctx: Context, phase: str) -> dict[int, Signed | None]:
        """The reveal that is held back in this phase, by its sender."""
        empty: dict[int, Signed | None] = {}
        return self.collusion.shared(("late reveal", ctx.step, phase), lambda: empty)


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
            return replace(message, signature=bytes(64)), {}
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
