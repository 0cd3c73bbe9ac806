"""The evidence of ACCUSE (Algorithm 3): what is disclosed for a claim, and what a judge makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from btard.protocol.messages import EXCUSED, FALSE_CLAIM, GUILTY, Claim, Packet, Report, is_finite
from btard.protocol.packets import committed_body, find_packet, gradient_packets, packet_fault
from btard.protocol.record import StepRecord
from btard.protocol.report import part_scalars
from btard.protocol.seat import Seat
from btard.protocol.validate import work_is_wrong
from btard.protocol.verify import (
    CONVICT,
    SIGMAS,
    Tally,
    aggregate_is_wrong,
    far_off,
    residual_tolerance,
    scalars_differ,
    v2_violation,
    v3_violation,
)


def disclosures(
    seat: Seat,
    raised: Mapping[Claim, tuple[int, ...]],
    hook: Callable[[Claim, Sequence[Packet]], Sequence[Packet]],
) -> list[Packet]:
    """The packets I have to show for the claims `raised`, as accuser or, for a wrong aggregate, as accused."""
    shown: list[Packet] = []
    for claim, accusers in raised.items():
        about = seat.record_of(claim.step)
        if about is None:
            continue
        packets: list[Packet] = []
        received = about.received.get(claim.part, {})
        if claim.kind in ("wrong_gradient", "undisclosed"):
            packets = _committed_packets(seat, about, claim, accusers)
        elif claim.kind == "wrong_aggregate" and claim.accused == seat.id:
            packets = [received[sender] for sender in sorted(received)]
        elif seat.id in accusers and claim.kind == "misreport" and claim.accused in received:
            packets = [received[claim.accused]]
        elif seat.id in accusers:
            suspect = about.suspects.get((claim.kind, claim.accused, claim.part))
            packets = [suspect] if suspect is not None else []
        shown += hook(claim, packets)
    return shown


def _committed_packets(seat: Seat, about: StepRecord, claim: Claim, accusers: tuple[int, ...]) -> list[Packet]:
    """Mode `tolerant`: what the accused committed to, from itself, from who was shown it, or from the parts' owners.

    An honest peer on either side so brings to every judge what its verdict needs. The owners matter where neither does.
    """
    if seat.config.validation == "exact":
        return []
    if claim.accused == seat.id:
        return gradient_packets(about, seat.id, about.own) if about.own is not None else []
    if seat.id in accusers and claim.accused in seat.current.disclosed:
        return gradient_packets(about, claim.accused, seat.current.disclosed[claim.accused])
    held = [packets[claim.accused] for packets in about.received.values() if claim.accused in packets]
    return held if claim.kind == "undisclosed" else []


def verdict_on(
    seat: Seat,
    claim: Claim,
    accusers: tuple[int, ...],
    evidence: Mapping[int, Sequence[Packet]],
    truth: Mapping[int, torch.Tensor],
    corrected: Mapping[int, Report],
) -> str:
    """My verdict on `claim`. `evidence`: discloser -> packets; `truth`: accused -> its recomputed gradient [d]."""
    about = seat.record_of(claim.step)
    if about is None:
        return EXCUSED
    if claim.kind in ("wrong_gradient", "undisclosed"):
        return _wrong_work(seat, about, claim, truth[claim.accused])
    if claim.kind == "misreport":
        return _misreport(seat, about, claim, evidence)
    if claim.kind == "wrong_aggregate":
        return _wrong_aggregate(seat, about, claim, evidence, corrected)
    kind = "part" if claim.kind == "bad_part" else "aggregate"
    hashes = about.commits[claim.accused].digests[claim.part] if kind == "part" else about.announced[claim.part].digest
    for accuser in accusers:
        packet = find_packet(evidence, accuser, kind, about.step, claim.part, author=claim.accused)
        if packet_fault(seat, packet, hashes, about.cut.size(claim.part), kind) == claim.kind:
            return GUILTY
    return FALSE_CLAIM


def _wrong_work(seat: Seat, about: StepRecord, claim: Claim, recomputed: torch.Tensor) -> str:
    """Mode `tolerant`: who accuses of a wrong gradient was shown it and shows it; who was not shown it has no blame."""
    innocent = FALSE_CLAIM if claim.kind == "wrong_gradient" else EXCUSED
    if seat.config.validation == "tolerant":
        if claim.accused not in seat.current.disclosed:
            return FALSE_CLAIM if claim.kind == "wrong_gradient" else GUILTY
        if not is_finite(recomputed):
            return EXCUSED  # I have nothing to compare with
    return GUILTY if work_is_wrong(seat, about, claim.accused, recomputed, margin=CONVICT) else innocent


def _misreport(seat: Seat, about: StepRecord, claim: Claim, evidence: Mapping[int, Sequence[Packet]]) -> str:
    part, said = claim.part, about.reports.get(claim.accused)
    if said is None or part not in about.announced or claim.accused not in about.announced[part].senders:
        return FALSE_CLAIM
    if part in said.missing or not about.held(part):
        return FALSE_CLAIM  # it had nothing to report on
    packet = find_packet(evidence, about.owner(part), "part", about.step, part, author=claim.accused)
    body = committed_body(seat, about, packet, claim.accused, part)
    if body is None:
        return FALSE_CLAIM
    if part not in about.aggregates:
        return EXCUSED  # I cannot tell; those who hold the aggregate can
    [(norm, products)] = part_scalars(seat, about, [body], part)
    tol = CONVICT * seat.config.scalar_tol
    wrong = scalars_differ(said.norms[part], said.products[part], norm, products, about.tau, tol)
    return GUILTY if wrong else FALSE_CLAIM


def _wrong_aggregate(
    seat: Seat,
    about: StepRecord,
    claim: Claim,
    evidence: Mapping[int, Sequence[Packet]],
    corrected: Mapping[int, Report],
) -> str:
    """CheckAveraging. An accused that does not produce the parts it says it averaged is guilty."""
    part = claim.part
    if part not in about.aggregates:
        return EXCUSED
    bodies = []
    for sender in about.announced[part].senders:
        packet = find_packet(evidence, claim.accused, "part", about.step, part, author=sender)
        body = committed_body(seat, about, packet, sender, part)
        if body is None:
            return GUILTY
        bodies.append(body)
    if aggregate_is_wrong(seat.config, about.aggregates[part], torch.stack(bodies), about.tau):
        return GUILTY
    tally = Tally(about, corrected if about is seat.last else about.reports)
    delta_max = far_off(seat.config, about, tally)
    cause = v2_violation(seat.config, about, tally, part, margin=CONVICT) or v3_violation(about, tally, part, delta_max)
    if not cause and about is seat.last and seat.config.validation == "tolerant":
        cause = _somebody_lied(seat, about, part, bodies)
    return EXCUSED if cause else FALSE_CLAIM


def _somebody_lied(seat: Seat, about: StepRecord, part: int, bodies: Sequence[torch.Tensor]) -> bool:
    """Whether reports on `part`, whose parts are `bodies`, are false enough for an honest alarm at a right aggregate.

    Mode `tolerant`: what was disclosed to the accuser but not to me corrects its sum and not mine. Its corrected sum is
    the true one, which vanishes, and the lies that are still in it. A quarter of V2's bound, since the typical
    distance in the accuser's bound is made of other reports than that in mine.
    """
    tally = Tally(about, about.reports)
    heard = tally.senders(part)
    if not heard:
        return False
    typical = tally.typical(part)
    bound = CONVICT * SIGMAS * len(heard) * residual_tolerance(seat.config, about.aggregates[part], typical)
    lies = [0.0] * seat.config.directions
    for sender, (_, true) in zip(about.announced[part].senders, part_scalars(seat, about, bodies, part), strict=True):
        if sender in heard:
            said = about.reports[sender].products[part]
            lies = [lie + abs(a - b) for lie, a, b in zip(lies, said, true, strict=True)]
    return max(lies) > 0.25 * bound * min(about.tau, typical)
