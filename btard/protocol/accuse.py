"""ACCUSE (Algorithm 3) and ELIMINATE. Claims are broadcast, evidence is disclosed, every active peer votes.

Rounds repeat until nobody has a new claim, because a verdict can bring another guilty peer to light (a convicted
reporter's corrected sum convicts the aggregator it covered for). Claims that only the broadcasts contradict, such as
an exclusion without an accusation, need no vote: everybody sees the same.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch

from btard.protocol.claims import disclosures, verdict_on
from btard.protocol.commit import clip_gradient
from btard.protocol.disclose import keep_disclosed
from btard.protocol.effects import Compute, Effect, Idle, Purpose
from btard.protocol.hashing import batch_seed, digest
from btard.protocol.ledger import Entry
from btard.protocol.limits import evidence_limit
from btard.protocol.messages import (
    ELIMINATE_KINDS,
    EXCLUSION_KINDS,
    FALSE_CLAIM,
    GUILTY,
    MISSING_KINDS,
    Claim,
    Claims,
    Votes,
)
from btard.protocol.packets import bodies
from btard.protocol.record import StepRecord
from btard.protocol.report import part_scalars
from btard.protocol.seat import Seat
from btard.protocol.validate import committed_gradient, corrected_reports
from btard.protocol.verify import ACCUSE, Tally, scalars_differ, suspicious_parts, v2_violation


def verify(seat: Seat, record: StepRecord) -> list[Claim]:
    """The claims that follow from what I received and from V1 on the parts I own, V2 and V3 on all parts."""
    claims = [Claim(record.step, accused, kind, part) for kind, accused, part in record.suspects]
    for part, packets in record.received.items():
        if not packets or part not in record.announced or part not in record.aggregates or not record.held(part):
            continue
        # All of them, my own too: whoever holds them side by side in memory then reads them where they lie.
        truth = part_scalars(seat, record, bodies(packets), part)
        tol = ACCUSE * seat.config.scalar_tol
        senders = set(record.announced[part].senders) - {seat.id}
        for sender, (norm, products) in zip(sorted(packets), truth, strict=True):
            said = record.reports.get(sender)
            if said is None or sender not in senders or part in said.missing:
                continue
            if scalars_differ(said.norms[part], said.products[part], norm, products, record.tau, tol):
                claims.append(Claim(record.step, sender, "misreport", part))
    claims += [
        Claim(record.step, record.owner(part), "wrong_aggregate", part)
        for part in suspicious_parts(seat.config, record, record.reports)
        if record.owner(part) != seat.id
    ]
    return claims


def judge(seat: Seat, record: StepRecord, claims: Sequence[Claim]) -> Generator[Effect, Any, None]:
    """Raise my `claims`, hear everybody's, look at the evidence, vote, and carry out the verdicts."""
    truth: dict[int, torch.Tensor] = {}
    settled: set[Claim] = set()
    attempt = 0
    while True:
        chosen = seat.behaviour_at(record).accuse(seat.context(record), tuple(sorted(set(claims))))
        messages = yield from seat.broadcast(
            record, f"accuse/{attempt}", Claims, Claims(chosen), expected=record.present
        )
        raised = _admissible(seat, record, messages)
        if attempt == 0:
            _expel_unexplained(seat, record, raised)
        raised = {claim: accusers for claim, accusers in raised.items() if claim not in settled}
        if not raised:
            return
        settled |= set(raised)
        _skip_untried(record, raised)
        tried = sorted(c for c in raised if c.kind not in ELIMINATE_KINDS and c.accused not in record.expelled)
        if tried:
            yield from _try(seat, record, {claim: raised[claim] for claim in tried}, truth, attempt)
        _eliminate(seat, record, {c: who for c, who in raised.items() if c.kind in ELIMINATE_KINDS})
        claims = _uncovered(seat, truth)
        attempt += 1


def _admissible(seat: Seat, record: StepRecord, messages: Mapping[int, Claims]) -> dict[Claim, tuple[int, ...]]:
    """Claim -> accusers, ascending. Who claims what cannot be is out."""
    raised: dict[Claim, tuple[int, ...]] = {}
    for accuser in sorted(messages):
        claims = set(messages[accuser].claims)
        too_many = len(claims) > seat.limits.claims
        if too_many or not all(_possible(seat, record, accuser, claim) for claim in claims):
            seat.expel(record, accuser, "malformed_claims")
            continue
        for claim in claims:
            raised[claim] = (*raised.get(claim, ()), accuser)
    return raised


def _possible(seat: Seat, record: StepRecord, accuser: int, claim: Claim) -> bool:
    """Whether the accused had the role in which it is accused, by the broadcasts."""
    about = seat.record_of(claim.step)
    if about is None or claim.accused == accuser:
        return False
    # Newcomers owe nothing but gradients.
    owed = about.commits if claim.kind in ("wrong_gradient", "undisclosed") else about.workers
    if claim.accused not in owed or claim.accused not in (*record.active, *record.probation):
        return False
    if claim.kind == "wrong_gradient":
        return about is not record and claim.part == -1
    if claim.kind == "undisclosed":  # only its validator was to be shown it
        tolerant = seat.config.validation == "tolerant" and about is not record and claim.part == -1
        return tolerant and record.assignments.get(accuser) == claim.accused
    if not 0 <= claim.part < about.cut.k:
        return False
    if claim.kind == "wrong_aggregate":
        return about.owner(claim.part) == claim.accused and claim.part in about.announced
    if about is not record:
        return False
    if claim.kind in MISSING_KINDS:
        return about.owner(claim.part) == claim.accused and claim.part in about.announced
    return about.owner(claim.part) == accuser  # what a part's owner alone can know


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


def _skip_untried(record: StepRecord, raised: Mapping[Claim, tuple[int, ...]]) -> None:
    """Whoever is out already is not tried any more, but what it aggregated must not count."""
    for claim in raised:
        if claim.kind == "wrong_aggregate" and claim.step == record.step and claim.accused in record.expelled:
            record.skipped.add(claim.part)


def _try(
    seat: Seat,
    record: StepRecord,
    raised: Mapping[Claim, tuple[int, ...]],
    truth: dict[int, torch.Tensor],
    attempt: int,
) -> Generator[Effect, Any, None]:
    """Evidence, votes and verdicts on the claims `raised`, all in one go. Adds recomputed gradients to `truth`."""
    behaviour, ctx = seat.behaviour_at(record), seat.context(record)
    shown = disclosures(seat, raised, lambda claim, packets: behaviour.disclose(ctx, claim, packets))
    others = [recipient for recipient in record.remaining if recipient != seat.id]
    limit = evidence_limit(about for claim in raised if (about := seat.record_of(claim.step)))
    sent = dict.fromkeys(others, shown) if shown else {}
    evidence = yield from seat.send(record, f"evidence/{attempt}", sent, limit=limit)
    record.shown[attempt] = {who: tuple(packets) for who, packets in {**evidence, seat.id: shown}.items()}
    evidence = record.shown[attempt]
    watching = seat.id in record.probation  # a newcomer has no vote
    # By what was known before the round, as the accusers: more truth could take their cause away.
    reports = corrected_reports(seat, seat.last, truth) if seat.last is not None and not watching else {}
    for claim in raised:
        if claim.kind in ("wrong_gradient", "undisclosed") and claim.accused not in truth and seat.last is not None:
            seed = batch_seed(seat.config.run_id, claim.step, claim.accused, seat.last.previous_coin)
            if watching:
                yield Idle("judge")
                truth[claim.accused] = torch.empty(0)
                continue
            gradient = yield Compute(claim.step, claim.accused, seed, Purpose.JUDGE)
            truth[claim.accused] = clip_gradient(gradient, seat.config.clip_lambda)
    if seat.config.validation == "tolerant" and not watching:
        for accused, gradient in truth.items():
            keep_disclosed(seat, record, accused, evidence, gradient)
    verdicts = tuple(
        behaviour.vote(ctx, claim, verdict_on(seat, claim, accusers, evidence, truth, reports))
        for claim, accusers in raised.items()
        if not watching
    )
    voters = record.remaining
    messages = yield from seat.broadcast(record, f"vote/{attempt}", Votes, Votes(verdicts), expected=record.present)
    votes = {judge: message.verdicts for judge, message in messages.items() if len(message.verdicts) == len(raised)}
    for judge in messages:
        if judge not in votes:
            seat.expel(record, judge, "malformed_votes")
    for index, (claim, accusers) in enumerate(raised.items()):
        _carry_out(seat, record, claim, accusers, {judge: cast[index] for judge, cast in votes.items()}, len(voters))


def _carry_out(
    seat: Seat, record: StepRecord, claim: Claim, accusers: tuple[int, ...], votes: dict[int, str], voters: int
) -> None:
    """The majority of the peers that could vote decides: the accused goes, or the accusers, or nobody."""
    cast = list(votes.values())
    decided = next((v for v in (GUILTY, FALSE_CLAIM) if 2 * cast.count(v) > voters), None)
    if decided is None:
        return
    if decided == GUILTY and claim.kind == "wrong_aggregate" and claim.step == record.step:
        record.skipped.add(claim.part)
    out = (claim.accused,) if decided == GUILTY else accusers
    out = tuple(p for p in out if p not in record.expelled)
    if not out:
        return
    seat.enter(
        record,
        Entry(
            step=record.step,
            kind=claim.kind if decided == GUILTY else "false_accusation",
            verdict=decided,
            accused=claim.accused,
            accusers=accusers,
            peers=out,
            about_step=claim.step,
            part=claim.part,
            evidence=_evidence_digest(seat, claim).hex(),
            votes={str(judge): votes[judge] for judge in sorted(votes)},
        ),
    )


def _evidence_digest(seat: Seat, claim: Claim) -> bytes:
    """H of the claim and of the commitments it is judged by; from broadcasts alone, so equal at every judge."""
    about = seat.record_of(claim.step)
    hashes: list[bytes] = []
    if about is not None:
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
    present = set(record.remaining)
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


def _uncovered(seat: Seat, truth: Mapping[int, torch.Tensor]) -> list[Claim]:
    """Aggregators of the step before whose wrong aggregate a convicted peer's cooked report had hidden from V2."""
    about = seat.last
    if about is None or seat.id in seat.current.probation:
        return []
    honest = {who: x for who, x in truth.items() if committed_gradient(seat, about, who, x) is not None}
    if not honest:
        return []
    tally = Tally(about, corrected_reports(seat, about, honest))
    return [
        Claim(about.step, about.owner(part), "wrong_aggregate", part)
        for part in sorted(about.announced)
        if about.owner(part) != seat.id
        and about.owner(part) in seat.current.remaining
        and v2_violation(seat.config, about, tally, part, margin=ACCUSE)
    ]
