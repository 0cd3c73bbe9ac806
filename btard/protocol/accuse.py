"""ACCUSE (Algorithm 3) and ELIMINATE. Claims are broadcast, evidence is shown, the voters judge.

What a kind of claim needs, and the verdict on it, is in `claims.py`; how evidence is shown and how all vote, in
`trial.py`. Here are the rounds, what follows from the votes, and ELIMINATE. There are at most two rounds: the first on
what was claimed and on the parts that V2 or V3 puts on trial; the second, after a conviction of somebody's work, on the
aggregates of the step before that its reports may have covered for.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

from btard.protocol.claims import KINDS, WORK_KINDS, WrongAggregate, admissible
from btard.protocol.effects import Effect
from btard.protocol.evidence import committed_work, own_pieces
from btard.protocol.hashing import digest
from btard.protocol.hearing import AGAIN, Heard
from btard.protocol.kind import NOTHING, Consequence, Tried, false_accusation
from btard.protocol.ledger import Entry, still_byzantine
from btard.protocol.messages import EXCLUSION_KINDS, EXCUSED, FALSE_CLAIM, GUILTY, MISSING_KINDS, NOBODY, Claim, Claims
from btard.protocol.record import StepRecord
from btard.protocol.report import reports_so_far, take_reports
from btard.protocol.scalars import gradient_report
from btard.protocol.seat import ACCUSE, Seat
from btard.protocol.trial import Evidence, Raised, Trial
from btard.protocol.verify import Tally, alarms, v2_violation, v3_violation


def judge(
    seat: Seat, record: StepRecord, claims: Callable[[], Sequence[Claim]], reports: Heard
) -> Generator[Effect, Any, None]:
    """Raise this peer's `claims`, hear everybody's, show and judge the evidence, vote, and carry out the verdicts.

    `claims` are what this peer has to say about `record` as it is. Along with them goes what was heard of the
    `reports`, on which all agree afterwards. They raise their claims again if not all had heard the same.
    """
    evidence = Evidence()

    def mine() -> Sequence[Claim]:
        return () if seat.id in record.probation else claims()  # a newcomer accuses nobody

    reports_so_far(seat, record, reports)
    heard = yield from _claim(seat, record, mine(), 0, before=[reports])
    take_reports(seat, record, reports)
    if not reports.certified:
        seat.void(record, heard, certified=reports.certified)
        heard = yield from _claim(seat, record, mine(), 0, again=True)
    raised = yield from _raised(seat, record, heard, 0)
    _expel_unexplained(seat, record, raised)
    suspicious = alarms(seat.config, record, margin=ACCUSE, memory=seat.memory)
    record.skipped |= {part for part in suspicious if record.owner(part) in record.expelled}
    raised |= {Claim(record.step, record.owner(part), WrongAggregate.name, part): () for part in suspicious}
    yield from _try(seat, record, _triable(record, raised), evidence, 0)
    _eliminate(seat, record, {claim: who for claim, who in raised.items() if not KINDS[claim.kind].trial})
    _skip_far_off(seat, record, suspicious)
    if seat.last is None or not WORK_KINDS.intersection(record.expelled.values()):
        return
    heard = yield from _claim(seat, record, _uncovered(seat, record, seat.last, evidence), 1)
    raised = yield from _raised(seat, record, heard, 1)
    yield from _try(seat, record, _triable(record, raised), evidence, 1)


def _claim(
    seat: Seat,
    record: StepRecord,
    claims: Iterable[Claim],
    attempt: int,
    *,
    before: Sequence[Heard] = (),
    again: bool = False,
) -> Generator[Effect, Any, Heard]:
    """Say what this peer claims."""
    chosen = seat.behaviour_at(record).accuse(seat.context(record), tuple(sorted(set(claims))))
    return (yield from seat.say(record, f"accuse/{attempt}{AGAIN * again}", Claims, Claims(chosen), before=before))


def _raised(seat: Seat, record: StepRecord, heard: Heard, attempt: int) -> Generator[Effect, Any, Raised]:
    """What everybody claims in this round. A peer is out if it claims what no honest peer could."""
    yield from seat.agree(record, heard)
    messages = seat.settled(record, heard, Claims, expected=record.members)
    raised: Raised = {}
    most = seat.limits(record).claims
    for accuser in sorted(messages):
        claims = set(messages[accuser].claims)
        possible = len(claims) <= most and all(admissible(seat, record, accuser, claim, attempt) for claim in claims)
        if not possible:
            seat.expel(record, accuser, "malformed_claims")
            continue
        for claim in claims:
            if KINDS[claim.kind].last_step:
                record.uncleared.add(claim.accused)
            if KINDS[claim.kind].accuses:
                raised[claim] = (*raised.get(claim, ()), accuser)
    return raised


def _triable(record: StepRecord, raised: Raised) -> Raised:
    """The claims to try, in order, without those whose accused, or all of whose accusers, are out already."""
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
    """Skip the parts that are far from most rows if half of the rows or more may be liars'.

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
    """Evidence, votes and verdicts on the claims `raised`, all at once."""
    if not raised:
        return
    record.trials[attempt], record.shown[attempt] = raised, {}
    trial = Trial(seat, record, raised, evidence, attempt)
    left = still_byzantine(seat.config, seat.ledger.entries)
    votes = yield from trial.hold()
    lacked = {
        piece: {judge for judge, cast in votes.items() if index in cast.lacking}
        for index, piece in enumerate(trial.public)
    }
    for index, (claim, accusers) in enumerate(raised.items()):
        about = trial.about[claim]
        # A peer that says nothing has lost its place: liars gain nothing by it, and an honest one costs nobody else.
        voters = votes.keys() & set(about.here or ())
        # They were members in both steps: newcomers that came since raise b_t, and have no vote.
        liars = min(left, about.byzantine)
        enough = max(len(voters) // 2, liars)  # a peer that hears no other votes decides nothing alone
        cast = {judge: votes[judge].verdicts[index] for judge in sorted(voters)}
        needed = [piece for piece in trial.listed[claim] if piece.by == NOBODY]
        unseen = {piece for piece in needed if 2 * len(voters & lacked[piece]) > len(voters)}
        informed = {i: cast[i] for i in cast if not any(i in lacked[piece] for piece in needed)}
        if len(needed) == len(trial.listed[claim]):  # nobody says whether it has what an accuser shows
            record.informed[claim] = informed
        unable = list(informed.values()).count(EXCUSED)
        if KINDS[claim.kind].recomputes and unable > liars and _verdict(cast, enough) == EXCUSED:
            continue  # an honest voter has seen all, and has no gradient to compare it with: nobody's fault
        _carry_out(seat, Tried(seat.config, record, about, claim, accusers, unseen), cast, enough)


def _verdict(votes: Mapping[int, str], enough: int) -> str:
    """What more than `enough` voters say; EXCUSED if there is no such verdict."""
    cast = list(votes.values())
    return next((v for v in (GUILTY, FALSE_CLAIM) if cast.count(v) > enough), EXCUSED)


def _carry_out(seat: Seat, tried: Tried, votes: Mapping[int, str], enough: int) -> None:
    """The verdict that more than `enough` voters give."""
    record, about, claim = tried.record, tried.about, tried.claim
    decided, kind = _verdict(votes, enough), KINDS[claim.kind]
    if kind.about_part and about is record and decided != FALSE_CLAIM:
        record.skipped.add(claim.part)
    if decided == GUILTY:
        follows = Consequence(kind.name, GUILTY, (claim.accused,))
    elif decided == FALSE_CLAIM:
        follows = false_accusation(tried) if kind.false_costs else NOTHING
    else:
        follows = kind.undecided(tried)
    out = tuple(peer for peer in follows.peers if peer not in record.expelled)
    if not out:
        return
    seat.enter(
        record,
        Entry(
            step=record.step,
            kind=follows.kind,
            verdict=follows.verdict,
            accused=claim.accused,
            accusers=tried.accusers,
            peers=out,
            about_step=claim.step,
            part=claim.part,
            evidence=_evidence_digest(about, claim).hex(),
            votes={str(judge): votes[judge] for judge in sorted(votes)},
        ),
    )


def _evidence_digest(about: StepRecord, claim: Claim) -> bytes:
    """H of the claim and of the commitments that decide it; from broadcasts alone, so equal at every judge."""
    hashes: list[bytes] = []
    if claim.accused in about.commits:
        hashes += about.commits[claim.accused].digests
    if claim.part in about.announced:
        hashes.append(about.announced[claim.part].digest)
    return digest("evidence", claim.step, claim.accused, claim.kind, claim.part, *hashes)


def _eliminate(seat: Seat, record: StepRecord, disputes: Mapping[Claim, tuple[int, ...]]) -> None:
    """ELIMINATE(i, j): a dispute without evidence removes both; a peer missed by over half of the others goes alone.

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
    """Aggregators of the step before whose wrong aggregate was hidden from V2 by a convicted peer's false report."""
    if seat.id not in record.members:
        return []
    corrected = dict(about.reports)
    for target, truth in evidence.truth.items():
        if target not in corrected or target not in record.expelled:
            continue
        exact = seat.config.validation == "exact"
        work = committed_work(about, target, own_pieces(seat, about, target, truth) if exact else evidence.table, truth)
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
