"""How far apart two gradients are, in distances that obey the triangle inequality: mode `tolerant`.

    d(a, b) = ||a - b|| / max(||a||, ||b||)         relative error, between 0 and 2
    c(a, b) = || a / ||a|| - b / ||b|| ||           chord between the directions; 1 - cos = c^2 / 2

Both are metrics: c is the Euclidean distance of unit vectors, d by Ptolemy's inequality
||a - c|| ||b|| <= ||a - b|| ||c|| + ||b - c|| ||a||  (Klamkin and Meir, Pacific J. Math. 101, 1982). So if honest peers
agree to within tol, and a validator v sees its target's gradient g at d(g, r_v) > 2 tol from its own recomputation r_v,
every honest judge j has d(g, r_j) >= d(g, r_v) - d(r_v, r_j) > tol and convicts; an honest target, at d <= tol, is
accused and convicted by nobody honest.

Below `FLOOR` an entry of a gradient says nothing: some machines take such numbers for zero, and float16 has none. So
what two gradients can differ by without any other difference, sqrt(p) FLOOR for p entries, is taken off their distance,
times the margin. For d that leaves the argument above as it is; for c it does but for gradients whose norm is not far
above sqrt(p) FLOOR, which are as good as zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from btard.protocol.config import ProtocolConfig
from btard.protocol.half import QUANTUM

FLOOR = QUANTUM
"""Above the smallest normal float32."""


@dataclass(frozen=True)
class Difference:
    """The distances between two gradients."""

    relative: float
    """d: 0 for equal ones (two zeros too), 1 if only one of them is zero, at most 2."""
    cosine: float
    """1 - cos, between 0 and 2; 0 where one of them is zero and has no direction: d says enough there."""


CHUNK = 2**20
"""Number of entries that are widened to float64 at once."""


def difference(a: torch.Tensor, b: torch.Tensor, floor: float = 0.0) -> Difference:
    """Compare `a` [d] with `b` [d], both finite. Summed in float64, where no finite float32 overflows; one pass.

    1 - cos comes from the difference of the directions, since 1 minus a rounded cosine would lose half the digits. A
    distance of up to `floor` in each entry counts as none.
    """
    apart = aa = bb = 0.0
    for x, y in _chunks(a, b):
        apart += float((x - y).square().sum())
        aa += float(x.square().sum())
        bb += float(y.square().sum())
    least, distance = floor * math.sqrt(len(a)), math.sqrt(apart)
    apart = apart - least * (2 * distance - least) if distance > least else 0.0  # the square of what is beyond
    longest = math.sqrt(max(aa, bb))
    if apart == 0:
        return Difference(0.0, 0.0)
    shortest = math.sqrt(min(aa, bb))
    if shortest == 0:
        return Difference(math.sqrt(apart) / longest, 0.0)
    # ||a - b||^2 = (||a|| - ||b||)^2 + ||a|| ||b|| c^2
    gap = (aa - bb) / (longest + shortest)
    chord = max(0.0, apart - gap * gap) / (longest * shortest)
    return Difference(math.sqrt(apart) / longest, chord / 2)


def _chunks(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for x, y in zip(a.split(CHUNK), b.split(CHUNK), strict=True):
        yield x.double(), y.to(x.device).double()


def too_far(config: ProtocolConfig, committed: torch.Tensor, recomputed: torch.Tensor, *, margin: float) -> bool:
    """Whether `committed` [d] is farther from `recomputed` [d] than `margin` times the tolerances.

    1 - cos goes with the square of a distance, and so does its margin.
    """
    apart = difference(committed, recomputed, margin * FLOOR)
    if apart.relative > margin * config.gradient_tol:
        return True
    return config.cosine_tol is not None and apart.cosine > margin**2 * config.cosine_tol


def reach(gradient_tol: float, *, margin: float) -> float:
    """How far an honest gradient can be from a judge's own, relative to the latter's norm; at margin 2 a validator's.

    ||g - r|| <= tol max(||g||, ||r||) gives ||g - r|| <= tol / (1 - tol) ||r||. What a validator sees beyond margin 2
    is beyond margin 1 for each judge: with ||r_v|| >= (1 - tol) ||r_j||, and ||r_v - r_j|| within the tolerance,
    ((1 - tol)^-2 - 1) ||r_v|| - ||r_v - r_j|| >= ((1 - tol)^-1 - 1) ||r_j||.
    """
    return (1 - gradient_tol) ** -margin - 1


def shown_too_far(
    config: ProtocolConfig, shown: torch.Tensor, recomputed: torch.Tensor, norm: float, *, margin: float
) -> bool:
    """`too_far` for some entries of a gradient: whether the rest, whatever it is, can make up for them.

    `shown` and `recomputed` have the entries that were shown, committed and recomputed; `norm` is that of the whole
    recomputed gradient. More entries never make less of it: what some of them prove, all of them do, but for the floor.
    """
    apart = difference(shown, recomputed, margin * FLOOR)
    mine = norm_of(recomputed)
    if apart.relative * max(norm_of(shown), mine) > reach(config.gradient_tol, margin=margin) * norm:
        return True
    if config.cosine_tol is None or norm == 0:
        return False
    # The norm of the whole is not known: the distance of the recomputed direction from the ray through what was shown.
    cosine = min(1.0, apart.cosine)
    return (mine / norm) ** 2 * cosine * (2 - cosine) / 2 > margin**2 * config.cosine_tol


def norm_of(x: torch.Tensor) -> float:
    """||x||, summed in float64."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64))


def tolerated_deviation(gradient_tol: float) -> float:
    """How far a gradient that no honest validator accuses can be from the honest one, relative to the latter's norm.

    ||g - r|| <= 2 tol max(||g||, ||r||) and ||g|| <= ||r|| + ||g - r|| give 2 tol / (1 - 2 tol).
    """
    return 2 * gradient_tol / (1 - 2 * gradient_tol)
