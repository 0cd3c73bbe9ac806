"""CenteredClip as first published: a few steps of clipping around the aggregate of the step before."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from btard.aggregation.checks import check_matrix, check_tau, require_finite
from btard.aggregation.gram import combination, row_squares


def clip_around(x: Tensor, centre: Tensor | None, tau: float, *, iterations: int = 1) -> Tensor:
    """CenteredClip of Karimireddy, He and Jaggi, "Learning from History" (ICML 2021), algorithm 2: [d] as `x`.

        v <- v + 1/n sum_i (x_i - v) min(1, tau / ||x_i - v||),  `iterations` times from v = centre on

    There the rows are the workers' momenta, `centre` is the aggregate of the step before, and one iteration is enough.
    A Byzantine row moves the result by at most tau / n per iteration, so it stands any number of them for a while;
    f < n/2 with a good centre. `centered_clip` goes on to the fixed point, which depends on no centre. Two passes per
    iteration in float64.

    Args:
        x: [n, d] float32 or float64.
        centre: [d], where to begin; None is 0.
        tau: clipping radius in (0, inf]; with inf one iteration gives the mean.
        iterations: l, at least 1.

    Raises:
        ValueError: bad shape or dtype, a row that is not finite, `tau` not in (0, inf], another shape of `centre`.
    """
    x, tau = check_matrix(x), check_tau(tau)
    if iterations < 1:
        raise ValueError(f"clip_around needs at least 1 iteration, got {iterations}")
    if centre is not None and centre.shape != (x.shape[1],):
        raise ValueError(f"expected a centre of shape {(x.shape[1],)}, got {tuple(centre.shape)}")
    value = x.new_zeros(x.shape[1]) if centre is None else centre.detach().to(x)
    for _ in range(iterations):
        squares = row_squares(x, value.double())
        if not np.isfinite(squares).all():
            require_finite(x)
            raise ValueError("the centre is not finite")
        influence = np.minimum(1.0, tau / np.maximum(np.sqrt(squares), 1e-300)) / len(x)
        value = combination(x, influence, value, wide=True)
    return value
