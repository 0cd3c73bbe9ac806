"""Phase choose of Algorithm 1: validators and their targets for the next step, drawn from the coin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from btard.protocol.hashing import stream
from btard.protocol.memory import NOTHING, Memory, remembered


def draw_validators(
    coin: bytes, workers: tuple[int, ...], active: tuple[int, ...], validators: int, memory: Memory = NOTHING
) -> dict[int, int]:
    """V_{t+1} as {validator: target}: `validators` pairs drawn from r^t, all peers in them distinct.

    Targets come uniformly from `workers` (W_t without those already banned), validators uniformly from the other
    peers of `active` (A_{t+1} without those who are away). Fewer pairs where there are too few peers; at least one peer
    is left to work.
    """
    pairs = memory(_pairs, coin, workers, active, validators)
    return dict(pairs)


@remembered(4)
def _pairs(
    coin: bytes, workers: tuple[int, ...], active: tuple[int, ...], validators: int
) -> tuple[tuple[int, int], ...]:
    rng = stream("validators", coin)
    candidates = [peer for peer in workers if peer in active]
    count = max(0, min(validators, len(candidates), (len(active) - 1) // 2))
    targets = [candidates[i] for i in rng.choice(len(candidates), count, replace=False)] if count else []
    others = [peer for peer in active if peer not in targets]
    chosen = [others[i] for i in rng.choice(len(others), count, replace=False)] if count else []
    return tuple(sorted(zip(chosen, targets, strict=True)))


def draw_check(
    coin: bytes,
    newcomers: Mapping[int, Iterable[int]],
    active: tuple[int, ...],
    assignments: Mapping[int, int],
    byzantine: int,
) -> dict[int, int]:
    """The `assignments` and, while a newcomer is on probation, the check of a newcomer, {validator: target}.

    `newcomers`: those with work of step t, and who has cleared them; each is as likely as the other, whatever is known
    of it, so that nobody can tell when it will be checked. A validator that has not checked it yet goes first.

    One more validator is one worker fewer. Where the workers that are left could all be Byzantine (`byzantine`: b_t),
    these would stop the run by saying nothing. There the check takes the place of one of the other pairs in every
    second step, by the coin.
    """
    pairs = dict(assignments)
    if not newcomers:
        return pairs
    rng = stream("newcomer check", coin)
    if len(active) - len(pairs) - 1 <= min(byzantine, (len(active) - 1) // 2):
        if not pairs or rng.integers(2):
            return pairs
        del pairs[sorted(pairs)[int(rng.integers(len(pairs)))]]
    free = [p for p in active if p not in pairs and p not in pairs.values()]
    if not free:
        return pairs
    target = sorted(newcomers)[int(rng.integers(len(newcomers)))]
    unused = [p for p in free if p not in set(newcomers[target])] or free
    return {**pairs, unused[int(rng.integers(len(unused)))]: target}
