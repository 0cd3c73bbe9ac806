"""How far runs without attack differ by chance: the measure of every dip.

A dip is the largest of many differences between two runs, so chance alone makes one: of two runs without attack, too,
one is below the other somewhere. That is measured here, over the same steps and as the same largest difference.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import permutations

from resnet.config import Config
from resnet.experiments.outcomes import Curve, Results, Series, quiet_text, undefended


@dataclass(frozen=True)
class Noise:
    """Dips by chance, in percentage points: one for every ordered pair of `runs` runs without attack."""

    runs: int
    dips: tuple[float, ...]

    @property
    def largest(self) -> float:
        return max(self.dips)


def chance_dip(below: Curve, above: Curve, start: int, last: int) -> float | None:
    """The largest lead of `above` over `below` in points, at steps after `start` and up to `last`."""
    return max((100 * (above[s] - below[s]) for s in above if start < s <= last and s in below), default=None)


class QuietRuns:
    """The finished runs without attack of a sweep, grouped with those that differ only in their seed."""

    def __init__(self, results: Results) -> None:
        self._groups: dict[str, dict[int, Curve]] = defaultdict(dict)
        quiet = [outcome for outcome in results.outcomes.values() if not outcome.attacked]
        for outcome in sorted(quiet, key=lambda outcome: outcome.cell.config.steps):
            # Of runs with one seed the longest: the others are its beginnings.
            self._groups[_key(outcome.cell.config)][outcome.cell.seed] = outcome.curve

    def noise(self, entry: Series) -> Noise | None:
        """What the dips of `entry` are compared with: its defence's runs without attack, else those of the mean.

        None if neither has two seeds.
        """
        config = entry.config
        for key in (_key(config), _key(undefended(config))):
            curves = self._groups.get(key, {})
            pairs = permutations(curves.values(), 2)
            dips = [chance_dip(one, other, config.attack.start, config.steps) for one, other in pairs]
            if found := tuple(dip for dip in dips if dip is not None):
                return Noise(len(curves), found)
        return None


def _key(config: Config) -> str:
    """What runs have in common whose differences without attack are noise: everything except the seed."""
    return quiet_text(replace(config, seed=0))
