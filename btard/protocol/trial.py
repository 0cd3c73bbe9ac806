"""A trial: evidence is shown and passed on until all honest voters have it, then all vote.

Accusers and accused show what they have to. Then everybody says which pieces it lacks, and their authors and owners
pass these on: so an honest peer's pieces reach all honest voters, whatever the other party of the claim does. The
voters on a claim about a step are the members of that step and of this one that vote; a member that says nothing loses
its place. Abstention stays in the denominator: only what more than half of them say, and more than may be Byzantine, is
so. One of these is honest and has seen all the evidence.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from btard.protocol import loads
from btard.protocol.claims import KINDS
from btard.protocol.commit import clip_gradient
from btard.protocol.effects import Compute, Effect, Idle, Purpose
from btard.protocol.evidence import Piece, fits, own_pieces, parts_of
from btard.protocol.hashing import batch_seed
from btard.protocol.limits import evidence_limit
from btard.protocol.messages import EXCUSED, NOBODY, Claim, Lacking, Votes
from btard.protocol.record import StepRecord
from btard.protocol.scalars import Truth
from btard.protocol.seat import Seat
from btard.protocol.signed import Packet

Raised = dict[Claim, tuple[int, ...]]
"""Claim -> accusers, ascending; none for a part that V2 or V3 puts on trial."""

Owed = dict[int, list[tuple[StepRecord, int]]]
"""Peer -> parts that it must show, each with its step."""


@dataclass
class Evidence:
    """What this peer knows in the trials of a step."""

    table: dict[Piece, Packet] = field(default_factory=dict)
    """The pieces that this peer has."""
    truth: dict[int, torch.Tensor] = field(default_factory=dict)
    """Peer accused of its work in the step before -> its gradient [d], as this peer computed it."""


class Trial:
    """The trial of the claims `raised` in round `attempt`, in which `seat` takes part; it then has their `evidence`.

    All follows from what is agreed: `about` has each claim's step, `listed` the pieces of evidence that it takes, and
    `public` those that everybody must have.
    """

    def __init__(self, seat: Seat, record: StepRecord, raised: Raised, evidence: Evidence, attempt: int) -> None:
        self.seat, self.record, self.raised, self.evidence, self.attempt = seat, record, raised, evidence, attempt
        self.about = {claim: seat.record_of(claim.step) or record for claim in raised}
        self.listed = {
            claim: KINDS[claim.kind].pieces(seat, self.about[claim], record, claim, accusers)
            for claim, accusers in raised.items()
        }
        self.pieces = {piece: self.about[claim] for claim in raised for piece in self.listed[claim]}
        self.public = [piece for piece in self.pieces if piece.by == NOBODY]

    def hold(self) -> Generator[Effect, Any, dict[int, Votes]]:
        """Everybody's votes, by voter."""
        yield from self._show()
        yield from self._recompute()
        if self.public:
            yield from self._pass_on()
        return (yield from self._vote())

    def _judges(self, about: StepRecord) -> bool:
        """Whether this peer reaches verdicts about the step of `about`: as a voter or an auditor (no peer)."""
        me = self.seat.id
        return me == NOBODY or (me in self.record.members and me in (about.here or ()))

    def _take(self, came: Mapping[int, Iterable[Packet]]) -> None:
        """Keep the pieces that came, whoever sent them."""
        record, pieces, table = self.record, self.pieces, self.evidence.table
        for discloser, packets in came.items():
            taken = []
            for packet in packets:
                what = Piece(packet.kind, packet.sender, packet.step, packet.part)
                for piece in (what, what._replace(by=discloser)):
                    if piece in pieces and piece not in table and fits(self.seat, pieces[piece], piece, packet):
                        table[piece] = packet
                        taken.append(packet)
            if taken:
                shown = record.shown.setdefault(self.attempt, {})
                shown[discloser] = (*shown.get(discloser, ()), *taken)

    def _show(self) -> Generator[Effect, Any, None]:
        """Accusers and accused show what they must."""
        seat, record, attempt = self.seat, self.record, self.attempt
        behaviour, ctx = seat.behaviour_at(record), seat.context(record)
        shown: list[Packet] = []
        owed: Owed = {}
        malformed: Owed = {}
        for claim, accusers in self.raised.items():
            kind, about = KINDS[claim.kind], self.about[claim]
            shown += behaviour.disclose(ctx, claim, kind.shown(seat, about, claim, accusers))
            for party in accusers if kind.accuser_shows else (claim.accused,):
                pieces_of = [piece for piece in self.listed[claim] if piece.by in (NOBODY, party)]
                owed.setdefault(party, []).extend((about, piece.part) for piece in pieces_of)
                malformed.setdefault(party, []).extend((about, p.part) for p in pieces_of if p.by == party)
        others = [recipient for recipient in record.members if recipient != seat.id]
        limit = max(evidence_limit(parts) for parts in owed.values())
        # What is not as it should be may be read, and so shown, up to twice its size.
        load = loads.of_evidence(record, {party: [*parts, *malformed[party]] for party, parts in owed.items()}, limit)
        outgoing = dict.fromkeys(others, shown) if shown else {}
        came = yield from seat.send(record, f"evidence/{attempt}", outgoing, limit=limit, load=load)
        self._take({**came, seat.id: shown})
        self._take({seat.id: self._mine()})

    def _mine(self) -> list[Packet]:
        """The pieces that this peer holds: as author, as owner of a part, and the aggregates it was sent."""
        me = self.seat.id
        found: list[Packet] = []
        for piece in self.public:
            about = self.pieces[piece]
            if piece.kind == "aggregate":
                value = about.aggregates.get(piece.part)
                if value is not None:
                    body = about.cut.body("aggregate", value)
                    found.append(Packet("aggregate", piece.author, about.step, piece.part, body, b""))
                continue
            received = about.received.get(piece.part, {}).get(piece.author)
            if received is not None:
                found.append(received)
            elif piece.author == me and about.own is not None:
                found.append(parts_of(about, me, about.own)[piece.part])
        return found

    def _recompute(self) -> Generator[Effect, Any, None]:
        """Compute the gradients on trial, each once, if this peer was present when they were computed.

        Where one comes out as it was committed to, I hold its parts as well as its author does.
        """
        seat, truth = self.seat, self.evidence.truth
        asked: set[int] = set()  # not those computed: how many they are has to be the same at all judges
        for claim in self.raised:
            if not KINDS[claim.kind].recomputes or claim.accused in asked:
                continue
            asked.add(claim.accused)
            if not self._judges(self.about[claim]):
                yield Idle("judge")
                continue
            seed = batch_seed(seat.config.run_id, claim.step, claim.accused, self.about[claim].previous_coin)
            gradient = yield Compute(claim.step, claim.accused, seed, Purpose.JUDGE)
            if gradient is None:
                continue
            clipped = clip_gradient(gradient, seat.config.clip_lambda)
            truth[claim.accused] = self.about[claim].cut.committed(clipped)
        for peer, gradient in truth.items():
            wanted = any(piece.author == peer and made is seat.last for piece, made in self.pieces.items())
            if wanted and seat.last is not None:
                self._take({seat.id: own_pieces(seat, seat.last, peer, gradient).values()})

    def _lacking(self) -> tuple[int, ...]:
        return tuple(index for index, piece in enumerate(self.public) if piece not in self.evidence.table)

    def _pass_on(self) -> Generator[Effect, Any, None]:
        """Every peer says which of the public pieces it lacks; the authors and the parts' owners send these pieces."""
        seat, record, attempt, public, pieces = self.seat, self.record, self.attempt, self.public, self.pieces
        said = Lacking(self._lacking())
        messages = yield from seat.broadcast(record, f"lacking/{attempt}", Lacking, said, expected=record.members)
        asked = {
            sender: [public[index] for index in sorted(set(lacking.pieces)) if 0 <= index < len(public)]
            for sender, lacking in messages.items()
        }
        if not any(asked.values()):
            return
        holders = {piece: frozenset({piece.author, pieces[piece].owner(piece.part)}) for piece in public}
        mine = {(packet.kind, packet.sender, packet.step, packet.part): packet for packet in self._mine()}
        due = {piece for piece in public if seat.id in holders[piece] and piece[:4] in mine}
        outgoing = {
            recipient: found
            for recipient, wanted in asked.items()
            if recipient != seat.id and (found := [mine[piece[:4]] for piece in wanted if piece in due])
        }
        owed: Owed = {}
        for piece in public:
            for holder in holders[piece]:
                owed.setdefault(holder, []).append((pieces[piece], piece.part))
        limit = max(evidence_limit(parts) for parts in owed.values())
        wanted_by = [(to, piece) for to, wanted in asked.items() for piece in wanted]
        wishes = (loads.Asked(to, pieces[piece], piece.part, holders[piece]) for to, piece in wanted_by)
        load = loads.of_passing(record, wishes, limit)
        came = yield from seat.send(record, f"pass/{attempt}", outgoing, limit=limit, load=load)
        self._take(came)

    def _vote(self) -> Generator[Effect, Any, dict[int, Votes]]:
        """Everybody's votes. A peer that was not there in the step in question abstains."""
        seat, record = self.seat, self.record
        behaviour, ctx = seat.behaviour_at(record), seat.context(record)
        verdicts: list[str] = []
        for claim in self.raised if seat.id in (*record.members, NOBODY) else ():
            verdicts.append(behaviour.vote(ctx, claim, self._verdict(claim)))
        said = Votes(tuple(verdicts), self._lacking())
        messages = yield from seat.broadcast(record, f"vote/{self.attempt}", Votes, said, expected=record.members)
        for judge, cast in messages.items():
            if len(cast.verdicts) != len(self.raised) or not set(cast.lacking) <= set(range(len(self.public))):
                seat.expel(record, judge, "malformed_votes")
        return {judge: cast for judge, cast in messages.items() if record.expelled.get(judge) != "malformed_votes"}

    def _verdict(self, claim: Claim) -> str:
        about, evidence = self.about[claim], self.evidence
        if not self._judges(about):
            return EXCUSED
        known = evidence.truth if about is self.seat.last else {}
        truths = {peer: Truth(gradient, about.aggregates) for peer, gradient in known.items()}
        return KINDS[claim.kind].verdict(self.seat, about, claim, self.listed[claim], evidence.table, truths)
