"""Peers that do not tell everybody the same, in broadcasts and on what they heard: two faces, silence, late messages.

What fellows hand to each other beside the protocol lies in the memory of their `Collusion`, so those that need it
(named in their docstrings) work where all attackers live in one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from btard.attacks.base import Attack, option
from btard.attacks.senders import BROADCASTS
from btard.attacks.speech import (
    Compared,
    Relays,
    Said,
    Sign,
    added,
    fellows_of,
    honest_others,
    identities,
    named,
    passed_through,
)
from btard.protocol.behaviour import Context
from btard.protocol.broadcast import relay_rounds
from btard.protocol.certificate import certify
from btard.protocol.coin import combine
from btard.protocol.hashing import digest
from btard.protocol.messages import (
    FALSE_CLAIM,
    GUILTY,
    NOBODY,
    Announce,
    Claim,
    Claims,
    CoinCommit,
    CoinReveal,
    Commit,
    Report,
    Votes,
)
from btard.protocol.signed import Signed
from btard.protocol.wire import Malformed


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
        if self.shown in ("last_round", "too_late") and self._rounds(ctx, phase) and fellows:
            self._hidden(ctx, phase)[ctx.peer] = second
            return message, {}
        return message, dict.fromkeys(honest[::2] if self.shown == "half" else honest[:1], second)

    def compare(self, ctx: Context, phase: str, view: bytes) -> Compared:
        return (None if self._hidden(ctx, phase) else view), {}

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Relays) -> Relays:
        for sender, second in self._hidden(ctx, phase).items():
            relayers = [peer for peer in (ctx.peer, *fellows_of(self, ctx)) if peer != sender]
            when = min(len(relayers), self._rounds(ctx, phase)) + (self.shown == "too_late")
            # One of them hands it over for all.
            if ctx.peer == min(relayers, default=NOBODY) and round == when:
                item = passed_through(self, ctx, second, relayers)
                outgoing = added(outgoing, honest_others(self, ctx)[:1], item)
        return outgoing

    def _hidden(self, ctx: Context, phase: str) -> dict[int, Signed]:
        """Sender -> its second face of this phase, which only fellows know."""
        empty: dict[int, Signed] = {}
        return self.collusion.shared(("second face", ctx.step, phase), lambda: empty)

    def _rounds(self, ctx: Context, phase: str) -> int:
        return relay_rounds(ctx.config, ctx.record, phase) if ctx.config is not None else 0


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
        last = 1 + (relay_rounds(ctx.config, ctx.record, phase) if ctx.config is not None else 0)
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
