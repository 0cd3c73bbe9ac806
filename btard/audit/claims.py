"""What a step's broadcasts say about its claims: who raised them, which packets they concern, whose votes won."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from btard.protocol.commitments import Commitments
from btard.protocol.limits import Limits
from btard.protocol.messages import NOBODY, Claim, Claims, Commit, Packet, Votes
from btard.protocol.record import StepRecord
from btard.protocol.wire import Malformed

if TYPE_CHECKING:
    from btard.protocol.peer import Peer

GRADIENT_KINDS = frozenset({"wrong_gradient", "undisclosed"})
"""Claims that a judge decides by computing a gradient again."""


def raised_claims(record: StepRecord, limits: Limits) -> dict[int, dict[Claim, tuple[int, ...]]]:
    """Round of accusations -> claim -> who raised it, from the broadcasts of the step."""
    raised: dict[int, dict[Claim, tuple[int, ...]]] = {}
    for attempt in record.shown:
        raised[attempt] = {}
        for sender, said in record.heard.get(f"accuse/{attempt}", {}).items():
            try:
                claims = said[0].open(Claims, limits.message(Claims)).claims
            except (Malformed, IndexError):
                continue
            for claim in claims:
                raised[attempt][claim] = (*raised[attempt].get(claim, ()), sender)
    return raised


def packets_about(
    shown: Mapping[int, Sequence[Packet]],
    claims: Mapping[Claim, tuple[int, ...]],
    commitments: Commitments,
    commits: Mapping[int, Commit],
) -> dict[int, tuple[Packet, ...]]:
    """The packets that a judge of `claims` can have looked at, one of each: nobody fills the disk with others.

    About a part these come from the parties of the claim. A whole gradient may come from anybody, if its parts have the
    hashes in `commits`, those of the step before.
    """
    parts: dict[int, set[tuple[int, int]]] = {}
    for claim, accusers in claims.items():
        for party in (claim.accused, *accusers):
            parts.setdefault(party, set()).add((claim.step, claim.part))
    whole = {(claim.accused, claim.step) for claim in claims if claim.part == NOBODY and claim.accused in commits}
    seen: set[tuple[int, int]] = set()
    kept: dict[int, tuple[Packet, ...]] = {}
    for discloser, packets in shown.items():
        first: dict[tuple[str, int, int, int], Packet] = {}
        for packet in packets:
            author, part = packet.sender, packet.part
            if (packet.step, part) in parts.get(discloser, ()):
                first.setdefault((packet.kind, author, packet.step, part), packet)
            elif (author, packet.step) in whole and (author, part) not in seen:
                committed = commits[author].digests
                if 0 <= part < len(committed) and commitments.of_packet(packet) == committed[part]:
                    seen.add((author, part))
                    first.setdefault((packet.kind, author, packet.step, part), packet)
        if first:
            kept[discloser] = tuple(first.values())
    return kept


def votes_with_majority(peer: Peer) -> int:
    """How many of the votes of `peer` were those of the majority: whoever got other evidence than most has fewer."""
    record, owner = peer.current, peer.id
    agreeing = 0
    for attempt in record.shown:
        cast: dict[int, tuple[str, ...]] = {}
        for sender, said in record.heard.get(f"vote/{attempt}", {}).items():
            try:
                cast[sender] = said[0].open(Votes, peer.limits.message(Votes)).verdicts
            except (Malformed, IndexError):
                continue
        for index, mine in enumerate(cast.get(owner, ())):
            votes = Counter(verdicts[index] for verdicts in cast.values() if index < len(verdicts))
            agreeing += 2 * votes[mine] > len(cast)
    return agreeing
