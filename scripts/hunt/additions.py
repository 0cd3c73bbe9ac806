"""What colluders add to what is said or sent: claims, and messages that they had kept to themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from btard.protocol.broadcast import relay_rounds
from btard.protocol.certificate import certify
from btard.protocol.claims import admissible
from btard.protocol.identity import Identity
from btard.protocol.messages import CLAIM_KINDS, NOBODY, PROBATION_KINDS, TOLERANT_KINDS, Claim
from btard.protocol.signed import Relayed, Signed, Vouch, relay_digest
from scripts.hunt.moment import Moment


def claims(at: Moment) -> list[Claim]:
    """Accusations: `claim` is one that an honest peer might have, `claims` are all of a kind; `wild` is any."""
    record, last = at.ctx.record, at.ctx.last
    seat = at.room.peers.get(at.me)
    kinds = sorted(CLAIM_KINDS | TOLERANT_KINDS | PROBATION_KINDS)
    steps = [record.step] + ([last.step] if last is not None else [])
    if at.gene.how == "wild":
        part = int(at.rng.integers(-1, len(at.room.owners(at.ctx))))
        accused = int(at.rng.choice(at.ctx.active))
        return [Claim(int(at.rng.choice(steps)), accused, str(at.rng.choice(kinds)), part)]
    attempt = int(any(phase.startswith("accuse/0") for phase in record.heard))
    found = [
        claim
        for step in steps
        for kind in kinds
        for accused in (*at.ctx.active, *record.newcomers)
        if accused not in at.room.members
        for part in (NOBODY, *range(len(at.room.owners(at.ctx))))
        for claim in (Claim(step, accused, kind, part),)
        if seat is not None and admissible(seat, record, at.me, claim, attempt)
    ]
    if at.gene.how == "claims" and found:
        raised = str(at.rng.choice(sorted({claim.kind for claim in found})))
        return [claim for claim in found if claim.kind == raised]
    if not found:
        return found
    return [found[int(at.rng.integers(len(found)))]]


def revealed(value: Mapping[int, Sequence[Any]], at: Moment) -> Mapping[int, Sequence[Any]]:
    """Hand out what fellows have kept back, or what they said in a former life, with all the signatures we have.

    Or a certificate of what the recipient heard, on which all colluders sign that they heard it, too.
    """
    ctx, phase, round = at.ctx, at.args.get("phase"), at.args.get("round")
    if not isinstance(phase, str) or not isinstance(round, int) or ctx.config is None:
        return value
    hidden: list[Signed] = list(at.room.hidden.get((at.room.life, ctx.step, phase), {}).values())
    for old in range(at.room.life):
        hidden += [m for m in at.room.noted(ctx.step, ("signed", phase), life=old).values() if isinstance(m, Signed)]
    keys = {i: at.room.keys[i] for i in sorted(at.room.keys) if i in ctx.record.remaining}
    last = relay_rounds(ctx.config, ctx.record, phase)

    def item(message: Signed, drawn: int, last: int) -> Relayed | None:
        """`message` with all hands, if this is its round."""
        hands = [i for i in keys if i != message.sender]
        when = (last, last, 1, len(hands))[drawn % 4]
        if round != max(1, min(when, last)) or not hands:
            return None
        passed = relay_digest(message.digest(ctx.record.context))
        return Relayed(message, tuple((i, keys[i].sign(passed)) for i in hands))

    said = [found for message in hidden if (found := item(message, at.gene.pick, last)) is not None]
    added: dict[int, list[Relayed]] = {to: list(said) for to in at.chosen}
    if at.gene.pick // 4 % 2:
        for to in added:
            made = _certificate(at, phase, to, keys)
            # They have one round more than messages.
            shown = None if made is None else item(made, at.gene.pick // 8, last + 1)
            added[to] += [] if shown is None else [shown]
    return {**value, **{to: (*value.get(to, ()), *more) for to, more in added.items() if more}}


def _certificate(at: Moment, phase: str, to: int, keys: Mapping[int, Identity]) -> Signed | None:
    """One of what peer `to` says that it heard, with the signatures of all that say the same, and of all `keys`."""
    record, identity = at.ctx.record, at.ctx.identity
    said = record.vouches.get(to)
    if said is None or identity is None:
        return None
    on = said.statement
    vouches = {i: vouch for i, vouch in record.vouches.items() if i in record.members and vouch.statement == on}
    vouches |= {i: Vouch(on, key.sign(on)) for i, key in keys.items() if i in record.members}
    return certify(replace(record, vouches=vouches), phase, at.me, identity, sorted(vouches))
