"""Pure functions [n, d] -> [d] that combine the peers' vectors: CenteredClip and the baselines.

Nothing here knows a model, a network or a protocol; only torch, numpy and the standard library may be imported.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from btard.aggregation.around import clip_around
from btard.aggregation.centered_clip import (
    CenteredClip,
    centered_clip,
    centered_clips,
    clip_residual,
    residual_and_floor,
)
from btard.aggregation.krum import bulyan, krum, multi_krum
from btard.aggregation.means import geometric_median, mean, rfa
from btard.aggregation.mixing import MIXINGS, bucketing, nearest_neighbour_mixing
from btard.aggregation.ranks import coordinate_median, trimmed_mean
from btard.aggregation.rows import stack_rows

__all__ = [
    "AGGREGATORS",
    "MIXINGS",
    "Aggregator",
    "CenteredClip",
    "bucketing",
    "bulyan",
    "centered_clip",
    "centered_clips",
    "clip_around",
    "clip_residual",
    "coordinate_median",
    "geometric_median",
    "krum",
    "mean",
    "multi_krum",
    "nearest_neighbour_mixing",
    "residual_and_floor",
    "rfa",
    "stack_rows",
    "trimmed_mean",
]

Aggregator = Callable[..., Tensor]


def _radius(rule: str, tau: float | None) -> float:
    if tau is None:
        raise ValueError(f"{rule} needs a clipping radius: pass tau > 0, or inf for the mean")
    return tau


AGGREGATORS: dict[str, Aggregator] = {
    "mean": lambda x, *, byzantine=0, tau=None, last=None: mean(x),
    "coordinate_median": lambda x, *, byzantine=0, tau=None, last=None: coordinate_median(x),
    "trimmed_mean": lambda x, *, byzantine=0, tau=None, last=None: trimmed_mean(x, byzantine),
    "geometric_median": lambda x, *, byzantine=0, tau=None, last=None: geometric_median(x),
    "rfa": lambda x, *, byzantine=0, tau=None, last=None: rfa(x),
    "krum": lambda x, *, byzantine=0, tau=None, last=None: krum(x, byzantine),
    "multi_krum": lambda x, *, byzantine=0, tau=None, last=None: multi_krum(x, byzantine),
    "bulyan": lambda x, *, byzantine=0, tau=None, last=None: bulyan(x, byzantine),
    "centered_clip": lambda x, *, byzantine=0, tau=None, last=None: (
        centered_clip(x, _radius("centered_clip", tau)).value
    ),
    "clip_around_last": lambda x, *, byzantine=0, tau=None, last=None: clip_around(
        x, last, _radius("clip_around_last", tau)
    ),
}
"""Every rule by name: AGGREGATORS[name](x, byzantine=b, tau=tau, last=last) -> [d], of `x` [n, d] and the aggregate
`last` [d] of the step before, None in the first one. A rule ignores what it does not use. Errors: ValueError for
numbers of peers of which the rule promises nothing.

>>> import btard, torch
>>> btard.AGGREGATORS["coordinate_median"](torch.tensor([[1.0, 5.0], [2.0, 6.0], [900.0, -900.0]]))
tensor([2., 5.])
"""
