"""The sampling law: how long peers that attack at every step survive, given how `draw_validators` draws.

With m = 1, `a` active peers and `beta` Byzantine ones among them, a draw has (a - 1)^2 equally likely pairs: a target
among the a - 1 workers of the step, a validator among the other a - 1 peers. An attacker that worked in the step is
caught with probability (a - beta)/(a - 1)^2; averaged over the 1/a chance that it was itself the validator and did
not attack, (a - beta)/(a (a - 1)). The exact law is a Markov chain over (honest peers, Byzantine peers, Byzantine peers
among the present validators), which `survival_law` iterates for any m. The authors' published code has (n - b)/n^2 in
every step (`independent_law`).
"""

from __future__ import annotations

from collections import defaultdict
from math import comb

import numpy as np


def _hypergeometric(population: int, marked: int, drawn: int) -> dict[int, float]:
    """P(c marked items in a draw of `drawn` without replacement)."""
    low, high = max(0, drawn - (population - marked)), min(drawn, marked)
    total = comb(population, drawn)
    return {c: comb(marked, c) * comb(population - marked, drawn - c) / total for c in range(low, high + 1)}


def chances_to_be_caught(
    honest_workers: int, byzantine_workers: int, honest_others: int, byzantine_others: int, validators: int
) -> tuple[float, float]:
    """(p, q): p that one draw of `draw_validators` catches a given Byzantine worker, q that it catches two given ones.

    To be caught is to be drawn as the target of an honest validator. The four numbers are of the peers in A_{t+1}:
    those that worked in step t, and the others. With c pairs among w workers and a peers in all, h_w honest workers and
    h_o honest others,

        p = c/w * (h_o + h_w (w - c)/(w - 1)) / (a - c),

    for one's validator is each of the other a - c peers that are no targets with equal chance, and of the other workers
    a share of (c - 1)/(w - 1) are targets. With m = 1 that is (h_o + h_w) / (w (a - 1)). What matters of the past is
    in these numbers: nothing that a peer knows before the coin r^t, nor anything that it does, changes p.
    """
    workers = honest_workers + byzantine_workers
    active = workers + honest_others + byzantine_others
    count = max(0, min(validators, workers, (active - 1) // 2))
    free = active - count
    if not count or not byzantine_workers:
        return 0.0, 0.0
    judges = honest_others + honest_workers * (workers - count) / max(1, workers - 1)
    one = count / workers * judges / free
    if count < 2 or byzantine_workers < 2:
        return one, 0.0
    # Both are targets; of the other count - 2 targets some are honest, and their validators are two honest ones.
    both = count * (count - 1) / (workers * (workers - 1))
    pairs = 0.0
    for targets, p in _hypergeometric(workers - 2, honest_workers, count - 2).items():
        left = honest_others + honest_workers - targets
        pairs += p * left * (left - 1)
    return one, both * pairs / (free * (free - 1))


State = tuple[int, int, int]
"""Byzantine peers left, validators of the current step, Byzantine validators among them."""


def _draw(honest: int, state: State, m: int, attacking: bool) -> dict[State, float]:
    """One draw of validators and targets, and the bans that the validators reach in the following step."""
    byzantine, present, present_byzantine = state
    active = honest + byzantine
    workers, marked = active - present, byzantine - present_byzantine
    count = max(0, min(m, workers, (active - 1) // 2))
    reached: dict[State, float] = defaultdict(float)
    for targets, p_targets in _hypergeometric(workers, marked, count).items():
        for judges, p_judges in _hypergeometric(active - count, byzantine - targets, count).items():
            for spared, p_spared in _hypergeometric(count, judges, targets).items():
                caught = targets - spared if attacking else 0
                reached[byzantine - caught, count, judges] += p_targets * p_judges * p_spared
    return reached


def survival_law(peers: int, byzantine: int, validators: int, steps: int, *, start: int = 0) -> np.ndarray:
    """P[s, beta], [steps, byzantine + 1] float64: the chance that `beta` attackers remain after step `start` + s.

    All `byzantine` peers deviate at every step from `start` on in which they work, and Byzantine validators accuse
    nobody. Work of step t is judged in step t + 1, so nobody is gone at s = 0.

    >>> import btard
    >>> law = btard.survival_law(peers=16, byzantine=7, validators=1, steps=100)
    >>> law.shape, float(law[0, 7]), bool(law[-1, 0] > 0.7)
    ((100, 8), 1.0, True)
    """
    states: dict[State, float] = {(byzantine, 0, 0): 1.0}
    honest = peers - byzantine

    def advance(attacking: bool) -> None:
        nonlocal states
        following: dict[State, float] = defaultdict(float)
        for state, p in states.items():
            for reached, q in _draw(honest, state, validators, attacking).items():
                following[reached] += p * q
        states = following

    for _ in range(min(start, 10)):  # before the attack only the validators change, and that forgets its start at once
        advance(attacking=False)
    law = np.zeros((steps, byzantine + 1))
    for s in range(steps):
        for (left, _, _), p in states.items():
            law[s, left] += p
        advance(attacking=True)
    return law


def chance_to_be_drawn(peers: int, byzantine: int) -> float:
    """Return the authors' chance that an attacker is banned in a step: 1/n (n - b)/n, with b at the start."""
    return (peers - byzantine) / peers**2


def independent_law(peers: int, byzantine: int, steps: int) -> np.ndarray:
    """P[s, beta], [steps, byzantine + 1] float64, as `survival_law`, by the law of the authors' published code.

    There each attacker is banned in each step in which it attacks with `chance_to_be_drawn`, independently of all
    others and from the attack's first step on. Its attack of the step in which it is banned still counts.
    """
    alive = (1 - chance_to_be_drawn(peers, byzantine)) ** np.arange(1, steps + 1)
    ways = [comb(byzantine, left) * alive**left * (1 - alive) ** (byzantine - left) for left in range(byzantine + 1)]
    return np.stack(ways, axis=1)


def expected_last_ban(peers: int, byzantine: int, validators: int) -> float:
    """Expected number of steps after the attack's start until no attacker is left."""
    steps, tail = 64, 1.0
    while tail > 1e-12:
        steps *= 2
        law = survival_law(peers, byzantine, validators, steps, start=1)
        tail = float(1 - law[-1, 0])
    return float((1 - law[:, 0]).sum())
