"""What colluders add to what is said or sent: claims, and messages that they had kept to themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from btard.protocol.broadcast import relay_rounds
from btard.protocol.certificate import certify
from btard.protocol.claims import admissible
from btard.protocol.messages import CLAIM_KINDS, NOBODY, PROBATION_KINDS, TOLERANT_KINDS, Claim
from btard.protocol.signed import Relayed, Signed, relay_digest
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

    Or a certificate of what this peer heard, if it has one.
    """
    ctx, phase, round = at.ctx, at.args.get("phase"), at.args.get("round")
    if not isinstance(phase, str) or not isinstance(round, int) or ctx.config is None:
        return value
    hidden: list[Signed] = list(at.room.hidden.get((at.room.life, ctx.step, phase), {}).values())
    for old in range(at.room.life):
        hidden += [m for m in at.room.noted(ctx.step, ("signed", phase), life=old).values() if isinstance(m, Signed)]
    keys = {i: at.room.keys[i] for i in sorted(at.room.keys) if i in ctx.record.remaining}
    if at.gene.pick % 4 >= 2 and ctx.identity is not None and ctx.record.vouches:
        signed_by = [i for i in sorted(ctx.record.vouches) if i in ctx.record.members]
        hidden.append(certify(ctx.record, phase, ctx.peer, ctx.identity, signed_by))
    items = []
    for message in hidden:
        signers = [i for i in keys if i != message.sender]
        last = relay_rounds(ctx.config, ctx.record, phase)
        when = (last, 1, len(signers))[at.gene.pick % 3]
        if message.phase.endswith("/certificate"):
            when, last = when + 1, last + 1
        if round != max(1, min(when, last)) or not signers:
            continue
        signed = relay_digest(message.digest(ctx.record.context))
        items.append(Relayed(message, tuple((i, keys[i].sign(signed)) for i in signers)))
    return {**value, **{to: (*value.get(to, ()), *items) for to in at.chosen}} if items else value
