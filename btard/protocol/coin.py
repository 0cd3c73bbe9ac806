"""Phase coin, the paper's MPRNG. Commit, then reveal; who does not reveal is out, and it is redrawn."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from btard.protocol.aggregate import recover
from btard.protocol.effects import Effect
from btard.protocol.hashing import digest
from btard.protocol.memory import remembered
from btard.protocol.messages import CoinCommit, CoinReveal
from btard.protocol.record import StepRecord
from btard.protocol.seat import Seat


class NoQuorum(RuntimeError):
    """Half of the peers or more were not heard in a step: who goes on now may be cut off from those who really do."""


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

    Rides along: each peer names the aggregates it lacks, and those who hold them pass them on before the reveal.

    It is also the roll call. A worker that missed the commit phase may have been slow, and owes this one nothing: if it
    is not heard here either, it is away for the rest of the step.
    Errors: NoQuorum if no more than half of A_t are heard.
    """
    run_id, attempt = seat.config.run_id, 0
    while True:
        mine = CoinReveal(
            seat.identity.secret("coin", run_id, record.step, attempt),
            seat.identity.secret("salt", run_id, record.step, attempt),
        )
        commitment = seat.memory(coin_commitment, run_id, record.step, attempt, seat.id, mine)
        missing = tuple(part for part in record.announced if part not in record.aggregates)
        commits = yield from seat.broadcast(
            record,
            f"coin_commit/{attempt}",
            CoinCommit,
            CoinCommit(commitment, missing),
            expected=record.present if attempt else record.owing,
        )
        if attempt == 0:
            record.away = frozenset(record.remaining) - commits.keys()
            if 2 * len(commits.keys() & set(record.active)) <= len(record.active):
                raise NoQuorum(
                    f"step {record.step}: heard {len(commits)} of {len(record.active)} peers, more than half are needed"
                )
        lacking = {sender: message.missing for sender, message in commits.items() if message.missing}
        if lacking and attempt == 0:
            record.missing = lacking
            yield from recover(seat, record, 0)
        reveals = yield from seat.broadcast(
            record,
            f"coin_reveal/{attempt}",
            CoinReveal,
            seat.behaviour_at(record).reveal(seat.context(record), mine),
            expected=record.present,
        )
        reveals = {sender: reveal for sender, reveal in reveals.items() if sender in commits}
        broken = [
            sender
            for sender in record.remaining
            if sender in reveals
            and seat.memory(coin_commitment, run_id, record.step, attempt, sender, reveals[sender])
            != commits[sender].digest
        ]
        for sender in broken:
            seat.expel(record, sender, "wrong_reveal")
        if not broken and all(sender in reveals for sender in commits):
            record.coin = combine(run_id, record.step, reveals)
            return
        attempt += 1
