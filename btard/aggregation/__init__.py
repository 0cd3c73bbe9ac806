"""Pure functions [n, d] -> [d] that combine the peers' vectors: CenteredClip and the baselines.

Nothing here knows a model, a network or a protocol; only torch, numpy and the standard library may be imported.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from btard.aggregation.centered_clip import CenteredClip, centered_clip, clip_residual, residual_and_floor
from btard.aggregation.krum import bulyan, krum, multi_krum
from btard.aggregation.means import geometric_median, mean
from btard.aggregation.ranks import coordinate_median, trimmed_mean
from btard.aggregation.rows import stack_rows

__all__ = [
    "AGGREGATORS",
    "Aggregator",
    "CenteredClip",
    "bulyan",
    "centered_clip",
    "clip_residual",
    "coordinate_median",
    "geometric_median",
    "krum",
    "mean",
    "multi_krum",
    "residual_and_floor",
    "stack_rows",
    "trimmed_mean",
]

Aggregator = Callable[..., Tensor]


def _centered_clip_value(x: Tensor, *, byzantine: int = 0, tau: float | None = None) -> Tensor:
    if tau is None:
        raise ValueError("centered_clip needs a clipping radius: pass tau > 0, or inf for the mean")
    return centered_clip(x, tau).value


AGGREGATORS: dict[str, Aggregator] = {
    "mean": lambda x, *, byzantine=0, tau=None: mean(x),
    "coordinate_median": lambda x, *, byzantine=0, tau=None: coordinate_median(x),
    "trimmed_mean": lambda x, *, byzantine=0, tau=None: trimmed_mean(x, byzantine),
    "geometric_median": lambda x, *, byzantine=0, tau=None: geometric_median(x),
    "krum": lambda x, *, byzantine=0, tau=None: krum(x, byzantine),
    "multi_krum": lambda x, *, byzantine=0, tau=None: multi_krum(x, byzantine),
    "bulyan": lambda x, *, byzantine=0, tau=None: bulyan(x, byzantine),
    "centered_clip": _centered_clip_value,
}
"""Every rule by name: AGGREGATORS[name](x, byzantine=b, tau=tau) -> [d], of `x` [n, d]. A rule ignores what it does not
use. Errors: ValueError for numbers of peers of which the rule promises nothing.

>>> import btard, torch
>>> btard.AGGREGATORS["coordinate_median"](torch.tensor([[1.0, 5.0], [2.0, 6.0], [900.0, -900.0]]))
tensor([2., 5.])
"""
