"""Statistics of the honest gradients, computed once per step for all attackers, without a copy of the [h, d] matrix.

Letters: h honest gradients g_i of d entries, mu their mean, y_i = g_i - mu.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from btard.protocol.collusion import Collusion

CHUNK = 1 << 15
"""Columns per block on the CPU, so that [h, CHUNK] stays in cache. A GPU takes 32 times as many."""


def _blocks(like: torch.Tensor) -> Iterator[slice]:
    width = CHUNK * (32 if like.is_cuda else 1)
    return (slice(start, start + width) for start in range(0, like.numel(), width))


def mean_of(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """mu [d], in the rows' dtype. h + 1 passes over d."""
    total = rows[0].clone()
    for row in rows[1:]:
        total += row
    return total.div_(len(rows))


def deviation_of(rows: Sequence[torch.Tensor], mean: torch.Tensor) -> torch.Tensor:
    """The population standard deviation [d], sqrt(sum_i y_i^2 / h); 0 for a single row. h + 2 passes over d.

    Divided by h and not by h - 1: the attackers hold all honest gradients, so nothing is estimated from a sample,
    and one honest gradient gives 0 instead of NaN.
    """
    out = torch.empty_like(mean)
    for block in _blocks(mean):
        y = torch.stack([row[block] for row in rows]).sub_(mean[block])
        out[block] = y.square_().sum(dim=0)
    return out.div_(len(rows)).sqrt_()


def honest_mean(collusion: Collusion) -> torch.Tensor:
    """mu [d] of the present step; shared, do not change it."""
    return collusion.shared("mean", lambda: mean_of(collusion.rows))


def honest_deviation(collusion: Collusion) -> torch.Tensor:
    """The population standard deviation [d] of the present step; shared, do not change it."""
    return collusion.shared("deviation", lambda: deviation_of(collusion.rows, honest_mean(collusion)))


@dataclass(frozen=True)
class Spread:
    """Where the honest gradients lie around their mean, along a direction p [d]. Scalars only, float64, on the CPU."""

    gram: torch.Tensor
    """<y_i, y_j> [h, h]."""
    along: torch.Tensor
    """<p, y_i> [h]."""
    square: float
    """||p||^2."""

    @property
    def to_mean(self) -> torch.Tensor:
        """||y_i||^2 [h]."""
        return self.gram.diagonal()

    @property
    def between(self) -> torch.Tensor:
        """||g_i - g_j||^2 [h, h]."""
        return (self.to_mean[:, None] + self.to_mean[None, :] - 2 * self.gram).clamp_(min=0)


def spread_of(rows: Sequence[torch.Tensor], mean: torch.Tensor, p: torch.Tensor) -> Spread:
    """One pass over all rows, blockwise in float64; the one place where a GPU waits for the host."""
    h = len(rows)
    products = torch.zeros(h + 1, h + 1, dtype=torch.float64, device=mean.device)
    for block in _blocks(mean):
        y = torch.stack([row[block] for row in rows]).double() - mean[block].double()
        y = torch.cat([y, p[block].double()[None]])
        products += y @ y.T
    products = products.cpu()
    return Spread(products[:h, :h], products[h, :h], float(products[h, h]))
