"""ACCUSE (Algorithm 3) and ELIMINATE. Claims are broadcast, evidence is shown, the voters judge.

What a kind of claim needs, and the verdict on it, is in `claims.py`. Here are the rounds, the votes and ELIMINATE.
There are at most two rounds: the first on what was claimed and on the parts that V2 or V3 puts on trial; the second,
after a conviction of somebody's work, on the aggregates of the step before that its reports may have covered for.

Evidence is shown, then everybody says which pieces it lacks, then their authors and owners pass these on: so an honest
peer's pieces reach all honest voters, whatever the other party of the claim does. The voters on a claim about a step
are the members of that step and of this one. Silence and abstention stay in the denominator: only what more than half
of them say is so. Less than half of them are Byzantine, so one of these is honest and has seen all the evidence.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from btard.protocol import loads
from btard.protocol.claims import (
    KINDS,
    WORK_KINDS,
    Piece,
    WrongAggregate,
    WrongGradient,
    admissible,
    committed_work,
    fits,
    own_pieces,
    parts_of,
)
from btard.protocol.commit import clip_gradient
from btard.protocol.effects import Compute, Effect, Idle, Purpose
from btard.protocol.hashing import batch_seed, digest
from btard.protocol.ledger import Entry
from btard.protocol.limits import evidence_limit
from btard.protocol.messages import (
    EXCLUSION_KINDS,
    EXCUSED,
    FALSE_CLAIM,
    GUILTY,
    MISSING_KINDS,
    NOBODY,
    Claim,
    Claims,
    Lacking,
    Packet,
    Votes,
)
from btard.protocol.packets import bodies
from btard.protocol.record import StepRecord
from btard.protocol.report import Truth, gradient_report, part_scalars
from btard.protocol.seat import Seat
from btard.protocol.verify import ACCUSE, Tally, alarms, reported, scalars_differ, v2_violation, v3_violation

Raised = dict[Claim, tuple[int, ...]]
"""Claim -> accusers, ascending; nobody for a part that V2 or V3 puts on trial."""


@dataclass
class Evidence:
    """What I know in the trials of a step."""

    table: dict[Piece, Packet] = field(default_factory=dict)
    """The pieces that lie before me."""
    truth: dict[int, torch.Tensor] = field(default_factory=dict)
    """Accused of its work in the step before -> its gradient [d], as I computed it."""


def verify(seat: Seat, record: StepRecord) -> list[Claim]:
    """The claims that follow from what I received, and from V1 on the parts I own."""
    claims = [Claim(record.step, accused, kind, part) for kind, accused, part in record.suspects]
    for part, packets in record.received.items():
        if not packets or part not in record.announced or part not in record.aggregates or not record.held(part):
            continue
        # All of them, my own too: whoever holds them side by side in memory then reads them where they lie.
        truth = part_scalars(seat, record, record.aggregates[part], bodies(packets), part)
        tol = ACCUSE * seat.config.scalar_tol
        senders = set(record.announced[part].senders) - {seat.id}
        for sender, true in zip(sorted(packets), truth, strict=True):
            said = record.reports.get(sender)
            if said is None or sender not in senders or part in said.missing:
                continue
            if scalars_differ(reported(said, part), true, record.tau, tol):
                claims.append(Claim(record.step, sender, "misreport", part))
    return claims


def judge(seat: Seat, record: StepRecord, claims: Sequence[Claim]) -> Generator[Effect, Any, None]:
    """Raise my `claims`, hear everybody's, look at the evidence, vote, and carry out the verdicts."""
    evidence = Evidence()
    raised = yield from _accuse(seat, record, claims, 0)
    _expel_unexplained(seat, record, raised)
    suspicious = alarms(seat.config, record, margin=ACCUSE, memory=seat.memory)
    record.skipped |= {part for part in suspicious if record.owner(part) in record.expelled}
    raised |= {Claim(record.step, record.owner(part), WrongAggregate.name, part): () for part in suspicious}
    yield from _try(seat, record, _triable(record, raised), evidence, 0)
    _eliminate(seat, record, {claim: who for claim, who in raised.items() if not KINDS[claim.kind].trial})
    _skip_far_off(seat, record, suspicious)
    if seat.last is None or not WORK_KINDS.intersection(record.expelled.values()):
        return
    raised = yield from _accuse(seat, record, _uncovered(seat, record, seat.last, evidence), 1)
    yield from _try(seat, record, _triable(record, raised), evidence, 1)


def _accuse(seat: Seat, record: StepRecord, claims: Iterable[Claim], attempt: int) -> Generator[Effect, Any, Raised]:
    """What everybody claims in this round. Who claims what honesty cannot is out."""
    chosen = seat.behaviour_at(record).accuse(seat.context(record), tuple(sorted(set(claims))))
    messages = yield from seat.broadcast(record, f"accuse/{attempt}", Claims, Claims(chosen), expected=record.members)
    raised: Raised = {}
    for accuser in sorted(messages):
        claims = set(messages[accuser].claims)
        possible = len(claims) <= seat.limits(record).claims and all(
            admissible(seat, record, accuser, claim, attempt) for claim in claims
        )
        if not possible:
            seat.expel(record, accuser, "malformed_claims")
            continue
        for claim in claims:
            raised[claim] = (*raised.get(claim, ()), accuser)
    return raised


def _triable(record: StepRecord, raised: Raised) -> Raised:
    """The claims to try, in order: not against or by nobody but peers that are out already."""
    return {
        claim: raised[claim]
        for claim in sorted(raised)
        if KINDS[claim.kind].trial
        and claim.accused not in record.expelled
        and (not raised[claim] or not record.expelled.keys() >= set(raised[claim]))
    }


def _expel_unexplained(seat: Seat, record: StepRecord, raised: Mapping[Claim, tuple[int, ...]]) -> None:
    """An owner that left a worker out of its list, or a peer that lacks an aggregate, owes an accusation."""

    def accused(accuser: int, whom: int, kinds: tuple[str, ...], part: int) -> bool:
        return any(accuser in raised.get(Claim(record.step, whom, kind, part), ()) for kind in kinds)

    for part, entry in sorted(record.announced.items()):
        if entry.senders == record.workers:
            continue
        owner = record.owner(part)
        left_out = set(record.workers) - set(entry.senders)
        if any(not accused(owner, i, EXCLUSION_KINDS, part) for i in left_out):
            seat.expel(record, owner, "unexplained_exclusion")
    for claim in sorted(raised):
        listed = record.announced.get(claim.part) if claim.kind == "withheld_part" else None
        if listed is not None and claim.accused in listed.senders:
            seat.expel(record, record.owner(claim.part), "contradiction")  # it counted what it says never came
    for sender, parts in sorted(record.missing.items()):
        for part in parts:
            if part not in record.announced or not accused(sender, record.owner(part), MISSING_KINDS, part):
                seat.expel(record, sender, "unexplained_absence")


def _skip_far_off(seat: Seat, record: StepRecord, suspicious: Iterable[int]) -> None:
    """Skip the parts that are far from most rows where half of the rows or more may be liars'.

    There CenteredClip itself promises nothing, so that its solution is not good for being right.
    """
    tally = Tally(record, record.reports)
    for part in suspicious:
        senders = record.announced[part].senders
        if len(senders) <= 2 * record.byzantine and v3_violation(seat.config, record, tally, part):
            record.skipped.add(part)


def _try(
    seat: Seat, record: StepRecord, raised: Raised, evidence: Evidence, attempt: int
) -> Generator[Effect, Any, None]:
    """Evidence, votes and verdicts on the claims `raised`, all in one go."""
    if not raised:
        return
    record.trials[attempt], record.shown[attempt] = raised, {}
    about = {claim: _about(seat, record, claim) for claim in raised}
    members = record.members
    listed = {
        claim: KINDS[claim.kind].pieces(seat, about[claim], record, claim, accusers)
        for claim, accusers in raised.items()
    }
    pieces = {piece: about[claim] for claim in raised for piece in listed[claim]}
    yield from _show(seat, record, raised, about, listed, pieces, evidence, attempt)
    yield from _recompute(seat, record, raised, about, pieces, evidence, attempt)
    public = [piece for piece in pieces if piece.by == NOBODY]
    if public:
        yield from _pass_on(seat, record, pieces, public, evidence, attempt)
    votes = yield from _vote(seat, record, raised, about, listed, public, evidence, attempt)
    lacked = {
        piece: {judge for judge, cast in votes.items() if index in cast.lacking} for index, piece in enumerate(public)
    }
    for index, (claim, accusers) in enumerate(raised.items()):
        voters = set(members).intersection(about[claim].here or ())
        cast = {judge: vote.verdicts[index] for judge, vote in sorted(votes.items()) if judge in voters}
        silent = voters - votes.keys()
        unseen = {
            piece
            for piece in listed[claim]
            if piece.by == NOBODY and 2 * len(voters & (lacked[piece] | silent)) > len(voters)
        }
        _carry_out(seat, record, about[claim], claim, accusers, cast, len(voters), unseen)


def _about(seat: Seat, record: StepRecord, claim: Claim) -> StepRecord:
    about = seat.record_of(claim.step)
    return record if about is None else about


def _judges(seat: Seat, record: StepRecord, about: StepRecord) -> bool:
    """Whether I come to verdicts about the step of `about`: as a voter, or as an auditor, who is nobody."""
    return seat.id == NOBODY or (seat.id in record.members and seat.id in (about.here or ()))


def _take(
    seat: Seat,
    record: StepRecord,
    pieces: Mapping[Piece, StepRecord],
    evidence: Evidence,
    attempt: int,
    came: Mapping[int, Sequence[Packet]],
) -> None:
    """Put on the table what came of the `pieces`, from whoever it came."""
    for discloser, packets in came.items():
        taken = []
        for packet in packets:
            what = Piece(packet.kind, packet.sender, packet.step, packet.part)
            for piece in (what, what._replace(by=discloser)):
                if piece in pieces and piece not in evidence.table and fits(seat, pieces[piece], piece, packet):
                    evidence.table[piece] = packet
                    taken.append(packet)
        if taken:
            shown = record.shown.setdefault(attempt, {})
            shown[discloser] = (*shown.get(discloser, ()), *taken)


def _show(
    seat: Seat,
    record: StepRecord,
    raised: Raised,
    about: Mapping[Claim, StepRecord],
    listed: Mapping[Claim, Sequence[Piece]],
    pieces: Mapping[Piece, StepRecord],
    evidence: Evidence,
    attempt: int,
) -> Generator[Effect, Any, None]:
    """Accusers and accused show what they have to."""
    behaviour, ctx = seat.behaviour_at(record), seat.context(record)
    shown: list[Packet] = []
    owed: dict[int, list[tuple[StepRecord, int]]] = {}
    malformed: dict[int, list[tuple[StepRecord, int]]] = {}
    for claim, accusers in raised.items():
        kind = KINDS[claim.kind]
        shown += behaviour.disclose(ctx, claim, kind.shown(seat, about[claim], claim, accusers))
        for party in accusers if kind.accuser_shows else (claim.accused,):
            pieces_of = [piece for piece in listed[claim] if piece.by in (NOBODY, party)]
            owed.setdefault(party, []).extend((about[claim], piece.part) for piece in pieces_of)
            malformed.setdefault(party, []).extend((about[claim], p.part) for p in pieces_of if p.by == party)
    others = [recipient for recipient in record.members if recipient != seat.id]
    limit = max(evidence_limit(parts) for parts in owed.values())
    # What is not as it should be may be read, and so shown, up to twice its size.
    load = loads.of_evidence(record, {party: [*parts, *malformed[party]] for party, parts in owed.items()}, limit)
    outgoing = dict.fromkeys(others, shown) if shown else {}
    came = yield from seat.send(record, f"evidence/{attempt}", outgoing, limit=limit, load=load)
    _take(seat, record, pieces, evidence, attempt, {**came, seat.id: shown})
    _take(seat, record, pieces, evidence, attempt, {seat.id: _mine(seat, pieces)})


def _mine(seat: Seat, pieces: Mapping[Piece, StepRecord]) -> list[Packet]:
    """What I hold of the `pieces`: as their author, as the owner of a part, and of aggregates those I was sent."""
    found: list[Packet] = []
    for piece, about in pieces.items():
        if piece.by != NOBODY:
            continue
        if piece.kind == "aggregate":
            value = about.aggregates.get(piece.part)
            if value is not None:
                found.append(Packet("aggregate", piece.author, about.step, piece.part, value, b""))
            continue
        received = about.received.get(piece.part, {}).get(piece.author)
        if received is not None:
            found.append(received)
        elif piece.author == seat.id and about.own is not None:
            found.append(parts_of(about, seat.id, about.own)[piece.part])
    return found


def _recompute(
    seat: Seat,
    record: StepRecord,
    raised: Raised,
    about: Mapping[Claim, StepRecord],
    pieces: Mapping[Piece, StepRecord],
    evidence: Evidence,
    attempt: int,
) -> Generator[Effect, Any, None]:
    """Compute the gradients on trial, each once, as far as I was there when they were made.

    Where one comes out as it was committed to, I hold its parts as well as its author does.
    """
    asked: set[int] = set()  # not those computed: how many they are has to be the same at all judges
    for claim in raised:
        if not KINDS[claim.kind].recomputes or claim.accused in asked:
            continue
        asked.add(claim.accused)
        if not _judges(seat, record, about[claim]):
            yield Idle("judge")
            continue
        seed = batch_seed(seat.config.run_id, claim.step, claim.accused, about[claim].previous_coin)
        gradient = yield Compute(claim.step, claim.accused, seed, Purpose.JUDGE)
        if gradient is None:
            continue
        evidence.truth[claim.accused] = clip_gradient(gradient, seat.config.clip_lambda)
    for peer, gradient in evidence.truth.items():
        wanted = any(piece.author == peer and made is seat.last for piece, made in pieces.items())
        if wanted and seat.last is not None:
            mine = own_pieces(seat, seat.last, peer, gradient)
            _take(seat, record, pieces, evidence, attempt, {seat.id: list(mine.values())})


def _pass_on(
    seat: Seat,
    record: StepRecord,
    pieces: Mapping[Piece, StepRecord],
    public: Sequence[Piece],
    evidence: Evidence,
    attempt: int,
) -> Generator[Effect, Any, None]:
    """Everybody says which of the `public` pieces it lacks; their authors and the parts' owners give it to them."""
    lacking = tuple(index for index, piece in enumerate(public) if piece not in evidence.table)
    messages = yield from seat.broadcast(
        record, f"lacking/{attempt}", Lacking, Lacking(lacking), expected=record.members
    )
    asked = {
        sender: [public[index] for index in sorted(set(said.pieces)) if 0 <= index < len(public)]
        for sender, said in messages.items()
    }
    if not any(asked.values()):
        return
    holders = {piece: frozenset({piece.author, pieces[piece].owner(piece.part)}) for piece in public}
    mine = {(packet.kind, packet.sender, packet.step, packet.part): packet for packet in _mine(seat, pieces)}
    due = {piece for piece in public if seat.id in holders[piece] and piece[:4] in mine}
    outgoing = {
        recipient: found
        for recipient, wanted in asked.items()
        if recipient != seat.id and (found := [mine[piece[:4]] for piece in wanted if piece in due])
    }
    owed: dict[int, list[tuple[StepRecord, int]]] = {}
    for piece in public:
        for holder in holders[piece]:
            owed.setdefault(holder, []).append((pieces[piece], piece.part))
    limit = max(evidence_limit(parts) for parts in owed.values())
    wanted_by = [(to, piece) for to, wanted in asked.items() for piece in wanted]
    wishes = (loads.Asked(to, pieces[piece], piece.part, holders[piece]) for to, piece in wanted_by)
    load = loads.of_passing(record, wishes, limit)
    came = yield from seat.send(record, f"pass/{attempt}", outgoing, limit=limit, load=load)
    _take(seat, record, pieces, evidence, attempt, came)


def _vote(
    seat: Seat,
    record: StepRecord,
    raised: Raised,
    about: Mapping[Claim, StepRecord],
    listed: Mapping[Claim, Sequence[Piece]],
    public: Sequence[Piece],
    evidence: Evidence,
    attempt: int,
) -> Generator[Effect, Any, dict[int, Votes]]:
    """Everybody's votes. Who was not there in the step in question abstains."""
    behaviour, ctx = seat.behaviour_at(record), seat.context(record)
    verdicts: list[str] = []
    for claim in raised if seat.id in (*record.members, NOBODY) else ():
        mine = EXCUSED
        if _judges(seat, record, about[claim]):
            known = evidence.truth if about[claim] is seat.last else {}
            truths = {peer: Truth(gradient, about[claim].aggregates) for peer, gradient in known.items()}
            mine = KINDS[claim.kind].verdict(seat, about[claim], claim, listed[claim], evidence.table, truths)
        verdicts.append(behaviour.vote(ctx, claim, mine))
    lacking = tuple(index for index, piece in enumerate(public) if piece not in evidence.table)
    messages = yield from seat.broadcast(
        record, f"vote/{attempt}", Votes, Votes(tuple(verdicts), lacking), expected=record.members
    )
    for judge, cast in messages.items():
        if len(cast.verdicts) != len(raised) or not set(cast.lacking) <= set(range(len(public))):
            seat.expel(record, judge, "malformed_votes")
    return {judge: cast for judge, cast in messages.items() if record.expelled.get(judge) != "malformed_votes"}


def _carry_out(
    seat: Seat,
    record: StepRecord,
    about: StepRecord,
    claim: Claim,
    accusers: tuple[int, ...],
    votes: dict[int, str],
    voters: int,
    unseen: set[Piece],
) -> None:
    """What more than half of the `voters` say is so. `unseen`: the pieces that more than half have not seen."""
    cast = list(votes.values())
    decided = next((v for v in (GUILTY, FALSE_CLAIM) if 2 * cast.count(v) > voters), EXCUSED)
    aggregate = claim.kind == WrongAggregate.name
    if aggregate and about is record and decided != FALSE_CLAIM:
        record.skipped.add(claim.part)
    kind = claim.kind
    if decided == GUILTY:
        out: tuple[int, ...] = (claim.accused,)
    elif aggregate or claim.kind == "undisclosed":
        if decided == FALSE_CLAIM:
            return
        if aggregate and not record.attends(claim.accused):
            return  # an owner that is not here owes no evidence
        # Undelivered is not wrong: its owner, and the senders that did not show it either, go as silent ones do.
        kind = decided = "undelivered"
        answerable = set(record.members) & set(about.here or ())
        if aggregate or record.attends(claim.accused):
            blamed = {claim.accused, *({piece.author for piece in unseen} & answerable)}
        else:  # what it had sent to owners who are here was theirs to show
            blamed = {about.owner(piece.part) for piece in unseen} & answerable
        out = tuple(sorted(blamed))
    elif decided == EXCUSED and kind == WrongGradient.name and seat.config.validation == "exact":
        return  # more of the voters are missing than the bound on absences allows
    else:
        kind, decided, out = "false_accusation", FALSE_CLAIM, accusers
    out = tuple(peer for peer in out if peer not in record.expelled)
    if not out:
        return
    seat.enter(
        record,
        Entry(
            step=record.step,
            kind=kind,
            verdict=decided,
            accused=claim.accused,
            accusers=accusers,
            peers=out,
            about_step=claim.step,
            part=claim.part,
            evidence=_evidence_digest(about, claim).hex(),
            votes={str(judge): votes[judge] for judge in sorted(votes)},
        ),
    )


def _evidence_digest(about: StepRecord, claim: Claim) -> bytes:
    """H of the claim and of the commitments it is judged by; from broadcasts alone, so equal at every judge."""
    hashes: list[bytes] = []
    if claim.accused in about.commits:
        hashes += about.commits[claim.accused].digests
    if claim.part in about.announced:
        hashes.append(about.announced[claim.part].digest)
    return digest("evidence", claim.step, claim.accused, claim.kind, claim.part, *hashes)


def _eliminate(seat: Seat, record: StepRecord, disputes: Mapping[Claim, tuple[int, ...]]) -> None:
    """ELIMINATE(i, j): a dispute without evidence removes both; a peer that over half of the others miss goes alone.

    One elimination uses up both of its peers, so no Byzantine peer takes more than one honest peer with it.
    """
    # Who fell out in this step, for a contradiction say, has nothing to say any more: its claims count for nothing.
    present = set(record.members)
    silent: dict[int, set[int]] = {}
    for claim, accusers in disputes.items():
        silent.setdefault(claim.accused, set()).update(present & set(accusers))

    def entry(kind: str, accused: int, accusers: tuple[int, ...], peers: tuple[int, ...]) -> Entry:
        return Entry(record.step, kind, "eliminated", accused, accusers, peers, about_step=record.step)

    for accused in sorted(silent):
        if accused not in record.expelled and 2 * len(silent[accused]) > len(present):
            seat.enter(record, entry("silent", accused, tuple(sorted(silent[accused])), (accused,)))
    for claim in sorted(disputes):
        for accuser in disputes[claim]:
            if claim.accused not in record.expelled and accuser not in record.expelled:
                pair = tuple(sorted((accuser, claim.accused)))
                seat.enter(record, entry(claim.kind, claim.accused, (accuser,), pair))


def _uncovered(seat: Seat, record: StepRecord, about: StepRecord, evidence: Evidence) -> list[Claim]:
    """Aggregators of the step before whose wrong aggregate a convicted peer's cooked report had hidden from V2."""
    if seat.id not in record.members:
        return []
    corrected = dict(about.reports)
    for target, truth in evidence.truth.items():
        if target not in corrected or target not in record.expelled:
            continue
        exact = seat.config.validation == "exact"
        work = committed_work(about, target, own_pieces(seat, about, target, truth) if exact else evidence.table, truth)
        if exact and work.unseen:
            continue
        true = gradient_report(seat, about, about.aggregates, target, work.gradient)
        corrected[target] = corrected[target].corrected(true, work.unseen)
    if corrected == about.reports:
        return []
    tally = Tally(about, corrected)
    found = [
        Claim(about.step, about.owner(part), WrongAggregate.name, part)
        for part in sorted(about.announced)
        if about.owner(part) != seat.id and v2_violation(seat.config, about, tally, part, margin=ACCUSE)
    ]
    return [claim for claim in found if admissible(seat, record, seat.id, claim, 1)]
