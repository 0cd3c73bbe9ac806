"""Phase coin, the paper's MPRNG. Commit, then reveal; a peer that does not reveal is out, and the coin is redrawn."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from btard.protocol.aggregate import Offer, accept, receive, take
from btard.protocol.effects import Broadcast, Effect, Exchange
from btard.protocol.hashing import digest
from btard.protocol.hearing import AGAIN, Heard, Hearing, well_formed
from btard.protocol.memory import Memory, remembered
from btard.protocol.messages import Announce, CoinCommit, CoinReveal
from btard.protocol.record import StepRecord
from btard.protocol.recover import recover
from btard.protocol.seat import Seat

HANDED_OUT = "/all"
"""End of the name of the phase in which all reveal, after those that lack aggregates have been given them."""


@remembered(1024)
def coin_commitment(run_id: str, step: int, attempt: int, peer: int, reveal: CoinReveal) -> bytes:
    """H(u_i, salt_i), bound to the run, the step, the attempt and the peer so that it cannot be copied."""
    return digest("coin", run_id, step, attempt, peer, reveal.value, reveal.salt)


def combine(run_id: str, step: int, reveals: Mapping[int, CoinReveal]) -> bytes:
    """r^t: 32 bytes that no group could choose as long as one honest peer took part."""
    fields: list[int | bytes] = []
    for peer in sorted(reveals):
        fields += [peer, reveals[peer].value]
    return digest("coin value", run_id, step, *fields)


@dataclass
class Tossed:
    """A coin whose reveals are not agreed on yet: `commits` are, and what was said with the reveals is `reveals`.

    `reveals` is None if the coin has been tossed again, and is known.
    """

    commits: Mapping[int, CoinCommit] = field(default_factory=dict)
    reveals: Heard | None = None


def toss(seat: Seat, record: StepRecord, offer: Offer) -> Generator[Effect, Any, Tossed]:
    """Commit and reveal, strictly after all commitments to gradients and aggregates. `settle` then has r^t.

    Who may speak is who is held to it: the members, in every attempt. Each attempt that fails removes at least one.

    All commit to their share along with what owners `offer`. A peer reveals along with its word on both, before it
    knows that all have heard the same. So it does it only if it has a commitment of every member, an announcement of
    every owner and nothing malformed, and every aggregate. If it lacks aggregates alone, it names them instead. So
    nobody knows the coin before all have what it judges, and nobody can commit to anything else without being removed.
    If somebody is, the coin is tossed again. A peer that has heard anything else waits until all agree on it.
    """
    speeches: list[Broadcast | Exchange] = [offer.announcement, _committing(seat, record, 0), offer.packets]
    announced, committed, arrived = yield from seat.speak(record, "aggregate", speeches)
    came = receive(seat, record, offer, arrived, seat.so_far(record, announced, Announce))
    take(record, came)
    members, commits = record.members, seat.so_far(record, committed, CoinCommit)
    sound = not came.malformed and came.announces.keys() >= {*record.workers, *announced.direct.said}
    heard_all = sound and commits.keys() >= set(members)
    reveals = yield from _reveal(seat, record, 0, before=[announced, committed], missing=came.missing, said=heard_all)
    announces = seat.settled(record, announced, Announce, expected=record.workers)
    if announces != came.announces:
        came = receive(seat, record, offer, arrived, announces)
    accept(seat, record, came)
    commits = seat.settled(record, committed, CoinCommit, expected=record.members)
    certified = announced.certified and committed.certified
    if certified and record.members == members:
        return Tossed(commits, reveals)
    seat.void(record, reveals, certified=certified)
    if not certified and record.members != members:  # a peer that fell out may have seen what others reveal
        lacking = CoinReveal.lacking(came.missing)
        lacks = yield from seat.broadcast(record, "coin_reveal/0/lacks", CoinReveal, lacking, expected=record.members)
        yield from _hand_out_missing(seat, record, lacks)
        yield from _toss_again(seat, record)
        return Tossed()
    return Tossed(commits, (yield from _reveal(seat, record, 0, missing=came.missing, word=AGAIN)))


def settle(seat: Seat, record: StepRecord, tossed: Tossed) -> Generator[Effect, Any, bool]:
    """Set `record.coin` to r^t once all agree on what was said with the reveals; whether that has been enough.

    If somebody lacks aggregates, they are passed on to it, and all reveal what they have committed to once more.
    """
    if tossed.reveals is None:
        return False
    assert tossed.reveals.agreed is not None
    reveals = tossed.reveals
    said = seat.settled(record, reveals, CoinReveal, expected=record.members)
    yield from _hand_out_missing(seat, record, said)
    if record.missing:
        reveals = yield from _reveal(seat, record, 0, word=HANDED_OUT)
        yield from seat.agree(record, reveals)
    if _judged(seat, record, 0, tossed.commits, reveals):
        return not record.missing
    yield from _toss_again(seat, record)
    return False


def guess(seat: Seat, record: StepRecord, tossed: Tossed) -> bytes | None:
    """r^t by what this peer has heard itself; None if somebody has not revealed what it has committed to."""
    if tossed.reveals is None:
        return record.coin
    reveals = seat.so_far(record, tossed.reveals, CoinReveal)
    if (
        _broken(seat, record, 0, tossed.commits, reveals, tossed.reveals.direct)
        or not tossed.commits.keys() <= reveals.keys()
    ):
        return None
    return combine(seat.config.run_id, record.step, {i: reveals[i] for i in sorted(reveals)})


def _toss_again(seat: Seat, record: StepRecord) -> Generator[Effect, Any, None]:
    """Toss until all that have committed reveal; whatever is said is agreed on at once."""
    attempt = 0
    while True:
        attempt += 1
        committing = _committing(seat, record, attempt)
        [committed] = yield from seat.speak(record, committing.phase, [committing])
        yield from seat.agree(record, committed)
        commits = seat.settled(record, committed, CoinCommit, expected=record.members)
        reveals = yield from _reveal(seat, record, attempt)
        yield from seat.agree(record, reveals)
        if _judged(seat, record, attempt, commits, reveals):
            return


def _secret(seat: Seat, record: StepRecord, attempt: int) -> CoinReveal:
    words = seat.config.run_id, record.step, attempt
    return CoinReveal(
        seat.identity.secret("coin", *words, epoch=record.epoch),
        seat.identity.secret("salt", *words, epoch=record.epoch),
    )


def _committing(seat: Seat, record: StepRecord, attempt: int) -> Broadcast:
    mine = _secret(seat, record, attempt)
    commitment = seat.memory(coin_commitment, seat.config.run_id, record.step, attempt, seat.id, mine)
    return seat.saying(record, f"coin_commit/{attempt}", CoinCommit, CoinCommit(commitment))


def _reveal(
    seat: Seat,
    record: StepRecord,
    attempt: int,
    *,
    before: Sequence[Heard] = (),
    missing: Sequence[int] = (),
    said: bool = True,
    word: str = "",
) -> Generator[Effect, Any, Heard]:
    """`said`: whether this peer says what is `missing`, or its share. `word`: what the phase's name ends in."""
    mine: CoinReveal | None = None
    if said and missing:
        mine = CoinReveal.lacking(missing)
    elif said:
        mine = seat.behaviour_at(record).reveal(seat.context(record), _secret(seat, record, attempt))
    return (yield from seat.say(record, f"coin_reveal/{attempt}{word}", CoinReveal, mine, before=before))


def _judged(seat: Seat, record: StepRecord, attempt: int, commits: Mapping[int, CoinCommit], heard: Heard) -> bool:
    """Remove who has not revealed what it committed to; set the coin and return True if nobody has to be."""
    reveals = seat.settled(record, heard, CoinReveal, expected=record.members)
    assert heard.agreed is not None
    broken = _broken(seat, record, attempt, commits, reveals, heard.agreed)
    for sender in broken:
        seat.expel(record, sender, "wrong_reveal")
    if broken or not all(sender in reveals for sender in commits):
        return False
    record.coin = combine(seat.config.run_id, record.step, reveals)
    return True


def _broken(
    seat: Seat,
    record: StepRecord,
    attempt: int,
    commits: Mapping[int, CoinCommit],
    reveals: Mapping[int, CoinReveal],
    heard: Hearing,
) -> list[int]:
    """The peers that have revealed, by the `reveals` that were `heard`, something else than they have committed to."""
    words = seat.config.run_id, record.step, attempt
    fits = heard.once(_commitments_to, seat.limits(record).message(CoinReveal), *words, seat.memory)
    return [sender for sender in reveals if sender in commits and fits[sender] != commits[sender].digest]


def _commitments_to(
    heard: Hearing, limit: int, run_id: str, step: int, attempt: int, memory: Memory
) -> Mapping[int, bytes]:
    """Sender -> the commitment that fits to what it has revealed."""
    revealed = heard.once(well_formed, tuple(heard.said), CoinReveal, limit, memory)
    return {i: memory(coin_commitment, run_id, step, attempt, i, reveal) for i, reveal in revealed.items()}


def _hand_out_missing(seat: Seat, record: StepRecord, said: Mapping[int, CoinReveal]) -> Generator[Effect, Any, None]:
    """Record which peers lack which aggregate, and pass these aggregates on."""
    record.missing = {sender: one.missing for sender, one in said.items() if one.missing}
    lacking = record.lacking(said)
    record.unheld = frozenset(part for part in record.announced if 2 * lacking[part] >= len(said))
    if record.missing:
        yield from recover(seat, record, 0)
