"""Phase coin, the paper's MPRNG. Commit, then reveal; a peer that does not reveal is out, and the coin is redrawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from typing import Any

from btard.protocol.aggregate import recover
from btard.protocol.effects import Effect
from btard.protocol.hashing import digest
from btard.protocol.memory import remembered
from btard.protocol.messages import CoinCommit, CoinReveal
from btard.protocol.record import StepRecord
from btard.protocol.seat import Seat


@remembered(1024)
def coin_commitment(run_id: str, step: int, attempt: int, peer: int, reveal: CoinReveal) -> bytes:
    """H(u_i, salt_i), bound to the run, the step, the attempt and the peer so that it cannot be copied."""
    return digest("coin", run_id, step, attempt, peer, reveal.value, reveal.salt)


def combine(run_id: str, step: int, reveals: dict[int, CoinReveal]) -> bytes:
    """r^t: 32 bytes that no group could choose as long as one honest peer took part."""
    fields: list[int | bytes] = []
    for peer in sorted(reveals):
        fields += [peer, reveals[peer].value]
    return digest("coin value", run_id, step, *fields)


def toss(seat: Seat, record: StepRecord) -> Generator[Effect, Any, None]:
    """Set `record.coin` to r^t, strictly after all commitments to gradients and aggregates.

    Who may speak is who is held to it: the members, in every attempt. Each attempt that fails removes at least one.
    Rides along: each peer names the aggregates it lacks, and those who hold them pass them on before the reveal.
    """
    run_id, attempt = seat.config.run_id, 0
    while True:
        mine = CoinReveal(
            seat.identity.secret("coin", run_id, record.step, attempt, epoch=record.epoch),
            seat.identity.secret("salt", run_id, record.step, attempt, epoch=record.epoch),
        )
        commitment = seat.memory(coin_commitment, run_id, record.step, attempt, seat.id, mine)
        missing = tuple(part for part in record.announced if part not in record.aggregates)
        commits = yield from seat.broadcast(
            record,
            f"coin_commit/{attempt}",
            CoinCommit,
            CoinCommit(commitment, missing if attempt == 0 else ()),
            expected=record.members,
        )
        if attempt == 0:
            yield from _hand_out_missing(seat, record, commits)
        reveals = yield from seat.broadcast(
            record,
            f"coin_reveal/{attempt}",
            CoinReveal,
            seat.behaviour_at(record).reveal(seat.context(record), mine),
            expected=record.members,
        )
        broken = [
            sender
            for sender, reveal in reveals.items()
            if sender in commits
            and seat.memory(coin_commitment, run_id, record.step, attempt, sender, reveal) != commits[sender].digest
        ]
        for sender in broken:
            seat.expel(record, sender, "wrong_reveal")
        if not broken and all(sender in reveals for sender in commits):
            record.coin = combine(run_id, record.step, reveals)
            return
        attempt += 1


def _hand_out_missing(
    seat: Seat, record: StepRecord, commits: Mapping[int, CoinCommit]
) -> Generator[Effect, Any, None]:
    """Record which peers lack which aggregate, and pass these aggregates on."""
    here = record.here or ()
    record.missing = {sender: said.missing for sender, said in commits.items() if said.missing}
    silent = sum(peer not in commits for peer in here)
    lacking = Counter(part for parts in record.missing.values() for part in set(parts))
    record.unheld = frozenset(part for part in record.announced if 2 * (silent + lacking[part]) >= len(here))
    if record.missing:
        yield from recover(seat, record, 0)
