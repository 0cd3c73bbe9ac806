"""Our side of the comparison, and ours changed to the others' way: one change each, in plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from btard.aggregation import AGGREGATORS
from btard.attacks import Collusion, make_attack
from btard.protocol.behaviour import View

Call = Callable[[Tensor, int], Tensor]
"""(rows [n, d], Byzantine rows) -> [d]; for attacks the rows are the honest ones."""

TAU = 2.0
"""Clipping radius of all comparisons."""


def rule(name: str) -> Call:
    """Our rule of this name."""
    return lambda x, f: AGGREGATORS[name](x, byzantine=f, tau=TAU)


def attack(name: str, **options: Any) -> Call:
    """What our attackers send, with `f` of them among the honest rows."""

    def send(x: Tensor, f: int) -> Tensor:
        h = len(x)
        collusion = Collusion(frozenset(range(h, h + f)), h + f)
        collusion.observe(0, dict(enumerate(x)))
        return make_attack(name, collusion, **options).gradient(View(0, h, "", [b""], tuple(range(h + f))), x[0])

    return send


def krum_with(*, fewer: int, power: int, many: bool) -> Call:
    """Krum, or Multi-Krum, by sums over the n - f - `fewer` nearest others of distances to this power."""

    def call(x: Tensor, f: int) -> Tensor:
        rows = x.numpy()
        distances = np.linalg.norm(rows[:, None] - rows[None], axis=2) ** power
        scores = np.sort(distances, axis=1)[:, 1 : 1 + len(rows) - f - fewer].sum(axis=1)
        chosen = np.argsort(scores, kind="stable")[: len(rows) - f if many else 1]
        return torch.from_numpy(rows[chosen].mean(axis=0))

    return call


def lower_median(x: Tensor, f: int) -> Tensor:
    """For an even number of rows, the lower of the two middle values, not their mean."""
    return x.sort(dim=0).values[(len(x) - 1) // 2]


def spread(x: Tensor, *, factor: float, sample: bool) -> Tensor:
    """The mean plus `factor` standard deviations; for a sample, these are divided by h - 1 and not by h."""
    return x.mean(dim=0) + factor * x.std(dim=0, correction=1 if sample else 0)
