"""How long attackers survived in the runs of a sweep, against the sampling law of `btard.protocol.law`.

Letters: n peers, b of them Byzantine, m validators per step; s counts steps from the attack's start on.

A coin draws the validators and their targets, and no gradient has a part in it. So runs with the same seed, start, n, b
and m ban the same peers at the same steps whatever the attack and the clipping: they are one sample of the law, not
several. Samples of one seed with different starts are taken as independent, which they are if the starts lie so far
apart that one attack is over before the other begins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from btard.attacks.registry import attack_class
from btard.protocol.law import independent_law, survival_law
from resnet.config import Config
from resnet.experiments.outcomes import Outcome

PROTOCOL, AUTHORS = "protocol", "authors"
"""Laws: that of the protocol's draw, and that of the random number that replaces it in the authors' code."""

LEVEL = 0.01
"""Chance of a false alarm of all tests of a report together, if the law holds."""

BAND = 0.9
"""Share of sweeps in which the mean lies within the band at a given step, if the law holds."""

FORGOTTEN = 10
"""Steps after which the validators' draw no longer depends on the run having begun without validators."""


@dataclass(frozen=True)
class Sample:
    """The bans of one draw of the coins. `runs` are the names of all runs with this draw."""

    start: int
    horizon: int
    """Steps from the start on that were observed."""
    bans: tuple[tuple[int, int], ...]
    """(step after the start, peer) of every ban of an attacker."""
    honest: int
    """Honest peers that were banned; the law holds for none."""
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """All samples with the same numbers of peers. `level` is the group's share of `LEVEL`."""

    peers: int
    byzantine: int
    validators: int
    samples: tuple[Sample, ...]
    level: float

    @property
    def label(self) -> str:
        word = "validator" if self.validators == 1 else "validators"
        return f"{self.byzantine} of {self.peers} attack, {self.validators} {word}"

    @property
    def steps(self) -> int:
        """Steps that were observed in all samples."""
        return min(sample.horizon for sample in self.samples)

    @property
    def last_bans(self) -> list[int]:
        """Per sample the step of the last attacker's ban; if some were left at the end, the steps observed."""
        return [
            max(step for step, _ in sample.bans) if len(sample.bans) == self.byzantine else sample.horizon
            for sample in self.samples
        ]

    @property
    def unfinished(self) -> int:
        """Samples with attackers left at the end."""
        return sum(len(sample.bans) < self.byzantine for sample in self.samples)

    def left(self) -> np.ndarray:
        """Attackers left after step s, mean over the samples: [steps] float64."""
        alive = [[self.byzantine - sum(at <= s for at, _ in x.bans) for s in range(self.steps)] for x in self.samples]
        return np.mean(np.array(alive, dtype=np.float64), axis=0)

    def law(self) -> np.ndarray:
        """The expectation of `left` by the law: [steps] float64."""
        each = [self._law(sample)[: self.steps] @ np.arange(self.byzantine + 1) for sample in self.samples]
        return np.mean(each, axis=0)

    def band(self) -> tuple[np.ndarray, np.ndarray]:
        """Quantiles (1 - BAND)/2 and (1 + BAND)/2 of `left` at each step under the law, each [steps] float64."""
        laws = [self._law(sample) for sample in self.samples]
        low, high = np.empty(self.steps), np.empty(self.steps)
        for s in range(self.steps):
            below = np.cumsum(distribution_of_sum([law[s] for law in laws]))
            low[s] = np.searchsorted(below, (1 - BAND) / 2)
            high[s] = np.searchsorted(below, (1 + BAND) / 2)
        return low / len(laws), high / len(laws)

    def _last_ban_laws(self, law: str) -> list[np.ndarray]:
        """Per sample the distribution of `last_bans` by the law: [horizon + 1] chances, the last: some are left."""
        gone = [self._law(sample, law)[: sample.horizon, 0] for sample in self.samples]
        return [np.diff(np.append(chances, 1.0), prepend=0.0) for chances in gone]

    def expected_last_ban(self, law: str = PROTOCOL) -> float:
        """Mean of `last_bans` by a law."""
        return float(np.mean([chances @ np.arange(len(chances)) for chances in self._last_ban_laws(law)]))

    def p_value(self, law: str = PROTOCOL) -> float:
        """Chance under a law of a sum of `last_bans` as far out as this one, on either side; exact."""
        return two_sided(distribution_of_sum(self._last_ban_laws(law)), sum(self.last_bans))

    def _law(self, sample: Sample, law: str = PROTOCOL) -> np.ndarray:
        if law == AUTHORS:
            return independent_law(self.peers, self.byzantine, sample.horizon)
        return _law(self.peers, self.byzantine, self.validators, min(sample.start, FORGOTTEN), sample.horizon)


def always_on(config: Config) -> bool:
    """Whether the law holds for this run: an attack at every step, to the end, whose author any validator convicts."""
    attack = config.attack
    if attack.name is None or attack_class(attack.name).level != "gradient":
        return False
    # `when` picks among the steps; tolerant validators convict nobody who is only a little off.
    always = attack.every == 1 and attack.stop is None and attack.options.get("when", "always") == "always"
    return always and config.protocol.validation == "exact" and config.validators > 0


def collapse(outcomes: Iterable[Outcome]) -> tuple[list[Group], list[str]]:
    """Return the samples that always-on runs are, and one line for every run whose bans differ from its sample.

    Of runs that differ the first one counts. A run that has diverged was observed until then.
    """
    drawn: dict[tuple[int, int, int], dict[tuple[int, int], list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        config = outcome.cell.config
        if always_on(config) and _horizon(outcome) > 0:
            numbers = config.peers, config.byzantine, config.validators
            drawn[numbers][outcome.start, config.seed].append(outcome)
    groups, differing = [], []
    for numbers, samples in sorted(drawn.items()):
        for same in samples.values():
            differing += [_difference(same[0], other) for other in same[1:] if not _equal(same[0], other)]
        collapsed = tuple(_sample(same) for _, same in sorted(samples.items()))
        groups.append(Group(*numbers, collapsed, LEVEL / len(drawn)))
    return groups, differing


def distribution_of_sum(laws: Sequence[np.ndarray]) -> np.ndarray:
    """Return the distribution of the sum of independent whole numbers from 0 on, given those of each."""
    total = np.ones(1)
    for law in laws:
        total = np.convolve(total, law)
    return total


def two_sided(distribution: np.ndarray, value: int) -> float:
    """Return twice the smaller of P(X <= value) and P(X >= value), at most 1."""
    return float(min(1.0, 2 * min(distribution[: value + 1].sum(), distribution[value:].sum())))


def _horizon(outcome: Outcome) -> int:
    end = outcome.cell.config.steps if outcome.diverged_at is None else outcome.diverged_at
    return end - outcome.start


def _bans(outcome: Outcome, before: int) -> list[tuple[int, int]]:
    """(step after the start, peer) of all bans, including honest peers', before step `before` after the start."""
    bans = [(ban["step"] - outcome.start, ban["peer"]) for ban in outcome.run.bans]
    return [(step, peer) for step, peer in bans if step < before]


def _equal(one: Outcome, other: Outcome) -> bool:
    common = min(_horizon(one), _horizon(other))
    return _bans(one, common) == _bans(other, common)


def _difference(one: Outcome, other: Outcome) -> str:
    common = min(_horizon(one), _horizon(other))
    mine, theirs = ({peer: step for step, peer in _bans(outcome, common)} for outcome in (one, other))
    peer = min(peer for peer in mine.keys() | theirs.keys() if mine.get(peer) != theirs.get(peer))

    def said(bans: dict[int, int]) -> str:
        return f"bans peer {peer} {bans[peer]} steps after the start" if peer in bans else f"does not ban peer {peer}"

    return f"{one.cell.name} {said(mine)}, {other.cell.name} {said(theirs)}"


def _sample(same: Sequence[Outcome]) -> Sample:
    # Duplicates may have been observed for longer than the first one.
    longest = max((outcome for outcome in same if _equal(same[0], outcome)), key=_horizon)
    attackers = set(longest.summary["byzantine"])
    bans = tuple(ban for ban in _bans(longest, _horizon(longest)) if ban[1] in attackers)
    honest = sum(longest.honest_bans.values())
    return Sample(longest.start, _horizon(longest), bans, honest, tuple(outcome.cell.name for outcome in same))


@lru_cache(maxsize=64)
def _law(peers: int, byzantine: int, validators: int, start: int, horizon: int) -> np.ndarray:
    """`survival_law`, [horizon, byzantine + 1]; once everybody is gone there is nothing left to compute."""
    steps = min(horizon, 128)
    while True:
        law = survival_law(peers, byzantine, validators, steps, start=start)
        if steps == horizon or law[-1, 0] > 1 - 1e-12:
            break
        steps = min(horizon, 2 * steps)
    gone = np.zeros((horizon - steps, byzantine + 1))
    gone[:, 0] = 1.0
    return np.concatenate([law, gone])
