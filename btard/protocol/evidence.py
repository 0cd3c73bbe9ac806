"""Section 4, the table of evidence: what is disclosed for a claim, and what a judge makes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from btard.protocol.exchange import find_packet, packet_fault
from btard.protocol.messages import EXCUSED, FALSE_CLAIM, GUILTY, Claim, Packet, Report
from btard.protocol.record import StepRecord
from btard.protocol.report import part_scalars
from btard.protocol.validate import work_is_wrong
from btard.protocol.verify import CONVICT, aggregate_is_wrong, far_off, scalars_differ, v2_violation, v3_violation

if TYPE_CHECKING:
    from btard.protocol.peer import Peer


def disclosures(
    peer: Peer,
    raised: Mapping[Claim, tuple[int, ...]],
    hook: Callable[[Claim, Sequence[Packet]], Sequence[Packet]],
) -> list[Packet]:
    """The packets I have to show for the claims `raised`, as accuser or, for a wrong aggregate, as accused."""
    shown: list[Packet] = []
    for claim, accusers in raised.items():
        about = peer.record_of(claim.step)
        if about is None:
            continue
        packets: list[Packet] = []
        received = about.received.get(claim.part, {})
        if claim.kind == "wrong_aggregate" and claim.accused == peer.id:
            packets = [received[sender] for sender in sorted(received)]
        elif peer.id in accusers and claim.kind == "misreport" and claim.accused in received:
            packets = [received[claim.accused]]
        elif peer.id in accusers:
            suspect = about.suspects.get((claim.kind, claim.accused, claim.part))
            packets = [suspect] if suspect is not None else []
        shown += hook(claim, packets)
    return shown


def verdict_on(
    peer: Peer,
    claim: Claim,
    accusers: tuple[int, ...],
    evidence: Mapping[int, Sequence[Packet]],
    truth: Mapping[int, torch.Tensor],
    corrected: Mapping[int, Report],
) -> str:
    """My verdict on `claim`. `evidence`: discloser -> packets; `truth`: accused -> its recomputed gradient [d]."""
    about = peer.record_of(claim.step)
    if about is None:
        return EXCUSED
    if claim.kind == "wrong_gradient":
        wrong = work_is_wrong(peer, about, claim.accused, truth[claim.accused], margin=CONVICT)
        return GUILTY if wrong else FALSE_CLAIM
    if claim.kind == "misreport":
        return _misreport(peer, about, claim, evidence)
    if claim.kind == "wrong_aggregate":
        return _wrong_aggregate(peer, about, claim, evidence, corrected)
    kind = "part" if claim.kind == "bad_part" else "aggregate"
    hashes = about.commits[claim.accused].digests[claim.part] if kind == "part" else about.announced[claim.part].digest
    for accuser in accusers:
        packet = find_packet(evidence, accuser, kind, about.step, claim.part, author=claim.accused)
        if packet_fault(peer, packet, hashes, about.cut.size(claim.part), kind) == claim.kind:
            return GUILTY
    return FALSE_CLAIM


def _misreport(peer: Peer, about: StepRecord, claim: Claim, evidence: Mapping[int, Sequence[Packet]]) -> str:
    part, said = claim.part, about.reports.get(claim.accused)
    if said is None or part not in about.announced or claim.accused not in about.announced[part].senders:
        return FALSE_CLAIM
    packet = find_packet(evidence, about.owner(part), "part", about.step, part, author=claim.accused)
    body = committed_body(peer, about, packet, claim.accused, part)
    if body is None:
        return FALSE_CLAIM
    if part not in about.aggregates:
        return EXCUSED  # I cannot tell; those who hold the aggregate can
    [(norm, products)] = part_scalars(peer, about, [body], part)
    tol = CONVICT * peer.config.scalar_tol
    wrong = scalars_differ(said.norms[part], said.products[part], norm, products, peer.config.tau, tol)
    return GUILTY if wrong else FALSE_CLAIM


def _wrong_aggregate(
    peer: Peer,
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
        body = committed_body(peer, about, packet, sender, part)
        if body is None:
            return GUILTY
        bodies.append(body)
    if aggregate_is_wrong(peer.config, about.aggregates[part], torch.stack(bodies)):
        return GUILTY
    reports = corrected if about is peer.last else about.reports
    delta_max = far_off(peer.config, about, reports)
    cause = v2_violation(peer.config, about, reports, part, margin=CONVICT) or v3_violation(
        about, reports, part, delta_max
    )
    return EXCUSED if cause else FALSE_CLAIM


def committed_body(peer: Peer, about: StepRecord, packet: Packet | None, sender: int, part: int) -> torch.Tensor | None:
    """The disclosed part [p], if it is the one that `sender` committed to."""
    if packet is None or not isinstance(packet.body, torch.Tensor):
        return None
    size, committed = about.cut.size(part), about.commits[sender].digests[part]
    return packet.body if packet_fault(peer, packet, committed, size, "part") is None else None
