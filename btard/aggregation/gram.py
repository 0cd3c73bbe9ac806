"""Passes over the memory: Gram matrices, distances and combinations of the rows of x [n, d].

Blocks of a few thousand columns are multiplied in the dtype of x and added up in float64, which leaves a relative
error of about 4e-8 for float32 at any d. `wide` computes float32 input in float64 throughout (slower), for
entries whose squares leave the range of float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from btard.aggregation.checks import require_finite

# Length of the dot products that are summed in the dtype of x before float64 takes over.
BLOCK = 2048
# Relative error of an entry of the Gram matrix, measured and rounded up, in units of the dtype's epsilon.
GRAM_ERROR = 1.0


def chunks(x: Tensor, bytes_cpu: int = 1 << 23, bytes_cuda: int = 1 << 26) -> Iterator[slice]:
    """Slices of the columns of `x` such that a buffer of one slice stays in the last-level cache."""
    n, d = x.shape
    budget = bytes_cuda if x.is_cuda else bytes_cpu
    columns = max(BLOCK, budget // (n * x.element_size()) // BLOCK * BLOCK)
    for start in range(0, d, columns):
        yield slice(start, min(start + columns, d))


def _block_gram(y: Tensor) -> Tensor:
    """Gram matrix [n, n] in float64 of the rows of `y`, multiplied blockwise where it lies, without a copy."""
    blocks, rest = divmod(y.shape[1], BLOCK)
    total = torch.zeros(len(y), len(y), dtype=torch.float64, device=y.device)
    if blocks:
        z = y[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)).transpose(0, 1)
        total += torch.bmm(z, z.transpose(1, 2)).sum(0, dtype=torch.float64)
    if rest:
        tail = y[:, blocks * BLOCK :]
        total += torch.mm(tail, tail.t())
    return total


def _block_squares(y: Tensor) -> Tensor:
    """Squared norms [n] in float64 of the rows of `y`."""
    blocks, rest = divmod(y.shape[1], BLOCK)
    total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    if blocks:
        norms = torch.linalg.vector_norm(y[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)), dim=2)
        total += norms.double().square_().sum(1)
    if rest:
        total += torch.linalg.vector_norm(y[:, blocks * BLOCK :], dim=1).double().square_()
    return total


def norm(v: Tensor) -> float:
    """Norm of the vector `v` [d], in its own dtype unless its squares leave the range of that."""
    square = float(_block_squares(v.unsqueeze(0))[0])
    if not 1e-30 < square < float("inf"):
        return float(torch.linalg.vector_norm(v, dtype=torch.float64))
    return square**0.5


def _buffer(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Flat scratch memory for one chunk of `x`: reused, so that every chunk after the first finds it in cache."""
    columns = max((s.stop - s.start for s in chunks(x)), default=0)
    return torch.empty(len(x) * columns, dtype=dtype, device=x.device)


def _difference(buffer: Tensor, x: Tensor, part: slice, centre: Tensor) -> Tensor:
    """`x[:, part] - centre[part]` in the dtype of the buffer. The subtraction rounds once, relative to its result."""
    y = buffer[: len(x) * (part.stop - part.start)].view(len(x), -1)
    if buffer.dtype == x.dtype:
        return torch.sub(x[:, part], centre[part], out=y)
    return y.copy_(x[:, part]).sub_(centre[part])


def gram(x: Tensor, centre: Tensor | None = None, *, wide: bool = False) -> np.ndarray:
    """Gram matrix [n, n] (numpy float64) of the rows of `x - centre`. One pass; entries may be inf or NaN.

    Args:
        x: [n, d] float32 or float64.
        centre: [d] in the dtype of `x`; None is the origin, which needs no subtraction and half the time.
        wide: compute in float64.
    """
    dtype = torch.float64 if wide else x.dtype
    total = torch.zeros(len(x), len(x), dtype=torch.float64, device=x.device)
    if centre is None and dtype == x.dtype:
        # Nothing is written, so that slices need not fit in cache; they only bound the memory for block results.
        for part in chunks(x, 1 << 28, 1 << 30):
            total += _block_gram(x[:, part])
        return total.cpu().numpy()
    if centre is None:
        centre = x.new_zeros(x.shape[1])
    buffer = _buffer(x, dtype)
    for part in chunks(x):
        total += _block_gram(_difference(buffer, x, part, centre))
    return total.cpu().numpy()


def checked_gram(x: Tensor, centre: Tensor | None = None, *, wide: bool = False) -> tuple[np.ndarray, bool]:
    """`gram`, repeated in float64 if float32 squares overflow or come close to underflow, and whether that was so.

    Raises:
        ValueError: a row of `x` is not finite; this costs nothing to find out until it happens.
    """
    g = gram(x, centre, wide=wide)
    if x.dtype == torch.float32 and not wide:
        squares = np.diag(g)
        # Differences from a centre inside the hull of the rows have at most four times the largest square.
        if not float(squares.max()) < 1e37 or float(np.median(squares)) < 1e-32 * x.shape[1]:
            wide = True
            g = gram(x, centre, wide=True)
    if not np.isfinite(g).all():
        require_finite(x)
    return g, wide


def squared_distances(x: Tensor) -> np.ndarray:
    """Squared distances [n, n] (numpy float64) between the rows of `x`, from a Gram matrix in float64. One pass.

    The subtraction `|g_i|^2 + |g_j|^2 - 2 <g_i, g_j>` costs relative accuracy of 1e-16 times the squared ratio of
    norm to distance.

    Raises:
        ValueError: a row of `x` is not finite.
    """
    g, _ = checked_gram(x, wide=True)
    squares = np.diag(g)
    # Exactly symmetric, so that rules which break ties by index see a tie between mutual neighbours as one.
    distances = np.maximum(squares[:, None] + squares[None, :] - (g + g.T), 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def row_squares(x: Tensor, centre: Tensor) -> np.ndarray:
    """Squares [n] = ||g_i - centre||^2 in float64 throughout. One pass; entries may be inf or NaN."""
    buffer = _buffer(x, torch.float64)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for part in chunks(x):
        total += _block_squares(_difference(buffer, x, part, centre))
    return total.cpu().numpy()


def clipped_square(x: Tensor, centre: Tensor, influence: np.ndarray) -> float:
    """`||sum_i influence_i (g_i - centre)||^2` in float64 throughout. One pass."""
    buffer = _buffer(x, torch.float64)
    a = torch.from_numpy(influence).to(x.device)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for part in chunks(x):
        total += torch.mv(_difference(buffer, x, part, centre).t(), a).square_().sum()
    return float(total)


@dataclass(frozen=True)
class Combined:
    """Result of `combine`: the value [d], squares [n] = ||g_i - v||^2, the Gram matrix of g_i - v if asked for, and
    clipped_square = ||sum_i influence_i (g_i - v)||^2."""

    value: Tensor
    squares: np.ndarray
    gram: np.ndarray | None
    clipped_square: float


def combine(
    x: Tensor,
    coefficients: np.ndarray,
    influence: np.ndarray,
    base: Tensor | None,
    *,
    with_gram: bool = False,
    wide: bool = False,
) -> Combined:
    """Form `v = sum_i p_i g_i` in the dtype of `x` and measure it: one pass over the memory for both.

    Args:
        x: [n, d].
        coefficients: p [n], summing to one unless they are those of `g_i - base` (or of the rows: base at the origin).
        influence: [n], the factors of the residual whose norm is measured.
        base: a point [d] near `v`; the sum is then formed of `g_i - base`, so that it rounds relative to the small
            differences and not to the rows.
        with_gram: also return the Gram matrix of `g_i - v` (half a pass more).
        wide: compute in float64.
    """
    dtype = torch.float64 if wide else x.dtype
    p = torch.from_numpy(coefficients).to(x.device, dtype)
    a = torch.from_numpy(influence).to(x.device, dtype)
    value = torch.empty_like(x[0])
    n = len(x)
    total_gram = torch.zeros(n, n, dtype=torch.float64, device=x.device)
    squares = torch.zeros(n, dtype=torch.float64, device=x.device)
    clipped_square = torch.zeros((), dtype=torch.float64, device=x.device)
    buffer = _buffer(x, dtype)
    if base is None and wide:
        base = torch.zeros_like(value)
    for part in chunks(x):
        v = value[part]
        if base is None:
            torch.mv(x[:, part].t(), p, out=v)
        else:
            y = _difference(buffer, x, part, base)
            v.copy_(torch.mv(y.t(), p) + base[part])
        y = _difference(buffer, x, part, value)
        if with_gram:
            total_gram += _block_gram(y)
        else:
            squares += _block_squares(y)
        residual = torch.mv(y.t(), a)
        clipped_square += _block_squares(residual.unsqueeze(0))[0]
    if with_gram:
        squares = total_gram.diagonal()
    return Combined(
        value, squares.cpu().numpy(), total_gram.cpu().numpy() if with_gram else None, float(clipped_square)
    )
