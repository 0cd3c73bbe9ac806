"""Passes over the memory: Gram matrices, distances and combinations of the rows of x [n, d].

Blocks of a few thousand columns are multiplied in the dtype of x and added up in float64, which leaves a relative
error of about 4e-8 for float32 at any d. `wide` computes float32 input in float64 throughout (slower), for
entries whose squares leave the range of float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from btard.aggregation.checks import require_finite
from btard.aggregation.scratch import scratch

# Length of the dot products that are summed in the dtype of x before float64 takes over.
BLOCK = 2048
# Columns that one thread takes at a time where combinations are shared out among threads.
_SHARE = 4 * BLOCK
# Bytes of a cache line.
_LINE = 64
# Bytes of a buffer that stays in the last-level cache.
_BUFFER_CPU, _BUFFER_CUDA = 1 << 23, 1 << 26
# Relative error of an entry of the Gram matrix, measured and rounded up, in units of the dtype's epsilon.
GRAM_ERROR = 1.0


def chunks(x: Tensor) -> Iterator[slice]:
    """Slices of the columns of `x` such that a buffer of one slice stays in the last-level cache."""
    n, d = x.shape
    budget = _BUFFER_CUDA if x.is_cuda else _BUFFER_CPU
    columns = max(1, budget // (n * x.element_size()) // _SHARE) * _SHARE
    for start in range(0, d, columns):
        yield slice(start, min(start + columns, d))


def _columns(x: Tensor, part: slice) -> Tensor:
    """The columns `part` of the matrix or vector `x`, which nearly always are all that it has."""
    return x if part.stop - part.start == x.shape[-1] else x[..., part]


def _blocks(y: Tensor, count: int) -> Tensor:
    """The first `count` blocks of columns of `y`, [count, n, BLOCK], without a copy."""
    return y[:, : count * BLOCK].unflatten(1, (count, BLOCK)).transpose(0, 1)


def _block_gram(y: Tensor) -> Tensor:
    """Gram matrix [n, n] in float64 of the rows of `y`, multiplied blockwise in place, without a copy."""
    count, rest = divmod(y.shape[1], BLOCK)
    tail = y[:, count * BLOCK :]
    if not count:
        return torch.mm(tail, tail.t()).double()
    z = _blocks(y, count)
    total = torch.bmm(z, z.transpose(1, 2)).sum(0, dtype=torch.float64)
    return total.add_(torch.mm(tail, tail.t())) if rest else total


def _block_dots(y: Tensor, v: Tensor) -> Tensor:
    """Inner products [n] in float64 of the rows of `y` with `v`."""
    count, rest = divmod(y.shape[1], BLOCK)
    if not count:
        return torch.mv(y, v).double()
    lines = v[: count * BLOCK].view(count, 1, BLOCK)
    total = torch.bmm(lines, _blocks(y, count).transpose(1, 2)).sum((0, 1), dtype=torch.float64)
    return total.add_(torch.mv(y[:, count * BLOCK :], v[count * BLOCK :])) if rest else total


def block_squares(y: Tensor) -> Tensor:
    """Squared norms in float64 of the rows of `y` [n, c], giving [n], or of the vector `y` [c]."""
    count, rest = divmod(y.shape[-1], BLOCK)
    if not count:
        return torch.linalg.vector_norm(y, dim=-1).double().square_()
    blocks, tail = y[..., : count * BLOCK].unflatten(-1, (count, BLOCK)), y[..., count * BLOCK :]
    total = torch.linalg.vector_norm(blocks, dim=-1).double().square_().sum(-1)
    return total.add_(torch.linalg.vector_norm(tail, dim=-1).double().square_()) if rest else total


def norm(v: Tensor) -> float:
    """Norm of the vector `v` [d], in its own dtype unless its squares leave the range of that."""
    return _norm(v, float(block_squares(v)))


def _norm(v: Tensor, square: float) -> float:
    """Norm of `v` of which `square` is the square as computed in the dtype of `v`."""
    if not 1e-30 < square < math.inf:
        return float(torch.linalg.vector_norm(v, dtype=torch.float64))
    return math.sqrt(square)


def _kernel_rows(x: Tensor) -> int:
    """The number of rows for which `x` is multiplied fastest: matrix kernels are slow at, say, 15 rows (2.5 times)."""
    n, d = x.shape
    return n if x.is_cuda or n <= 12 or d < BLOCK else -(-n // 4) * 4


def _in_place(x: Tensor) -> bool:
    """Whether to multiply the rows of `x` in place.

    Kernels sum in another order where rows do not start with a cache line. The same rows have to give the same bits
    wherever they lie, in every pass: an owner of a part and those who judge it have them in different places. So such
    rows are copied first.
    """
    return x.data_ptr() % _LINE == 0 and (x.shape[0] == 1 or x.stride(0) * x.element_size() % _LINE == 0)


def _buffer(x: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
    """Scratch memory [rows, columns of a chunk]: reused, so that every chunk after the first finds it in cache.

    Rows beyond those of `x` are zero. They are aligned, with a cache line between them that keeps them from competing
    for the same cache sets.
    """
    line = _LINE // dtype.itemsize
    columns = next(chunks(x)).stop
    buffer = scratch("rows of a chunk", (rows, (-(-columns // line) + 1) * line), dtype, x.device)
    if rows > x.shape[0]:
        buffer[x.shape[0] :] = 0
    return buffer


def _load(buffer: Tensor, x: Tensor, part: slice, centre: Tensor | None) -> Tensor:
    """`x[:, part] - centre[part]` in the dtype of the buffer. The subtraction rounds once, relative to its result."""
    y = buffer[: x.shape[0], : part.stop - part.start]
    if centre is None:
        return y.copy_(_columns(x, part))
    if buffer.dtype == x.dtype:
        return torch.sub(_columns(x, part), _columns(centre, part), out=y)
    return y.copy_(_columns(x, part)).sub_(_columns(centre, part))


def gram(x: Tensor, centre: Tensor | None = None, *, wide: bool = False) -> np.ndarray:
    """Gram matrix [n, n] (numpy float64) of the rows of `x - centre`. One pass; entries may be inf or NaN.

    Args:
        x: [n, d] float32 or float64.
        centre: [d] in the dtype of `x`; None is the origin, which needs no subtraction.
        wide: compute in float64.
    """
    n, rows = x.shape[0], _kernel_rows(x)
    dtype = torch.float64 if wide else x.dtype
    in_place = centre is None and dtype == x.dtype and rows == n and _in_place(x)
    buffer = None if in_place else _buffer(x, dtype, rows)
    total = None
    for part in chunks(x):
        if buffer is None:
            y = _columns(x, part)
        else:
            _load(buffer, x, part, centre)
            y = buffer[:, : part.stop - part.start]
        g = _block_gram(y)
        total = g if total is None else total.add_(g)
    assert total is not None
    return total.cpu().numpy()[:n, :n]


def checked_gram(x: Tensor, centre: Tensor | None = None, *, wide: bool = False) -> tuple[np.ndarray, bool]:
    """`gram`, repeated in float64 if float32 squares overflow or come close to underflow, and whether that was so.

    Raises:
        ValueError: a row of `x` is not finite; this costs nothing to find out until it happens.
    """
    g = gram(x, centre, wide=wide)
    squares = sorted(g.diagonal().tolist())
    # Differences from a centre inside the hull of the rows have at most four times the largest square.
    in_range = squares[-1] < 1e37 and squares[len(squares) // 2] >= 1e-32 * x.shape[1]
    if x.dtype == torch.float32 and not wide and not in_range:
        wide = True
        g = gram(x, centre, wide=True)
        squares = g.diagonal().tolist()
    if not math.isfinite(sum(squares)):
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
    buffer = _buffer(x, torch.float64, x.shape[0])
    total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    for part in chunks(x):
        total += block_squares(_load(buffer, x, part, centre))
    return total.cpu().numpy()


def clipped_square(x: Tensor, centre: Tensor, influence: np.ndarray) -> float:
    """`||sum_i influence_i (g_i - centre)||^2` in float64 throughout. One pass."""
    buffer = _buffer(x, torch.float64, x.shape[0])
    a = torch.from_numpy(influence).to(x.device)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for part in chunks(x):
        total += torch.mv(_load(buffer, x, part, centre).t(), a).square_().sum()
    return float(total)


def _mix(y: Tensor, p: Tensor, minus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """`sum_i p_i y_i - minus` [c], into `out` if given.

    Matrix-vector products run in one thread on the CPU, products of matrices in all. Where there are more threads and
    no remainder, so in all but the last of many chunks, it is one product per share of the columns.
    """
    n, columns = y.shape
    if y.is_cuda or columns % _SHARE or torch.get_num_threads() == 1:
        return torch.mv(y.t(), p, out=out) if minus is None else torch.addmv(minus, y.t(), p, beta=-1, out=out)
    count = columns // _SHARE
    z, line = y.unflatten(1, (count, _SHARE)).transpose(0, 1), p.expand(count, 1, n)
    into = None if out is None else out.view(count, 1, _SHARE)
    if minus is None:
        return torch.bmm(line, z, out=into).view(columns)
    return torch.baddbmm(minus.view(count, 1, _SHARE), line, z, beta=-1, out=into).view(columns)


def _form(y: Tensor, p: Tensor, base: Tensor | None, value: Tensor) -> Tensor:
    """Write `sum_i p_i y_i + base` into `value` [c], and return `value - base` in the dtype of `y`."""
    if y.dtype == value.dtype and base is None:
        return _mix(y, p, out=value)
    formed = _mix(y, p)
    if base is None:
        return value.copy_(formed).to(y.dtype)
    base = base.to(y.dtype)
    return value.copy_(formed.add_(base)).to(y.dtype).sub(base)


def combination(x: Tensor, coefficients: np.ndarray, base: Tensor | None, *, wide: bool = False) -> Tensor:
    """The value [d] alone of `combine`: one pass."""
    dtype = torch.float64 if wide else x.dtype
    p = torch.from_numpy(coefficients).to(x.device, dtype)
    value = x.new_empty(x.shape[1])
    if base is None and not wide and _in_place(x):
        return torch.mv(x.t(), p, out=value)
    buffer = _buffer(x, dtype, x.shape[0])
    for part in chunks(x):
        _form(_load(buffer, x, part, base), p, None if base is None else _columns(base, part), _columns(value, part))
    return value


@dataclass(frozen=True)
class Combined:
    """Result of `combine`.

    Attributes:
        value: v [d].
        size: ||v||.
        squares: [n], ||g_i - v||^2.
        clipped_sum: ||sum_i influence_i (g_i - v)||.
        gram: [n, n], the Gram matrix of g_i - v, or None.
    """

    value: Tensor
    size: float
    squares: np.ndarray
    clipped_sum: float
    gram: np.ndarray | None


def combine(
    x: Tensor,
    coefficients: np.ndarray,
    influence: np.ndarray,
    base: Tensor | None,
    row_squares: np.ndarray | None,
    *,
    wide: bool = False,
) -> Combined:
    """Form `v = sum_i p_i g_i` in the dtype of `x` and measure it: one pass over the memory for both.

    Args:
        x: [n, d].
        coefficients: p [n], summing to one unless they are those of `g_i - base` (or of the rows: base at the origin).
        influence: [n], the factors of the residual whose norm is measured; not all zero.
        base: a point [d] near `v`; the sum is then formed of `g_i - base`, so that it rounds relative to the small
            differences and not to the rows.
        row_squares: [n], ||g_i - base||^2. Distances are then measured by inner products with `v - base`, precisely
            if they are not far below ||g_i - base||. None: by subtracting `v` from the rows, precisely in any case,
            which returns the Gram matrix too and takes twice the time.
        wide: compute in float64.
    """
    n, dtype = x.shape[0], torch.float64 if wide else x.dtype
    scale = float(influence.sum())
    p = torch.from_numpy(coefficients).to(x.device, dtype)
    a = torch.from_numpy(influence / scale).to(x.device, dtype)
    value = x.new_empty(x.shape[1])
    in_place = base is None and not wide and _in_place(x)
    rows = n if row_squares is not None else _kernel_rows(x)
    buffer = None if in_place and row_squares is not None else _buffer(x, dtype, rows)
    moments: Tensor | None = None  # inner products with v - base, or the Gram matrix
    moved_square: Tensor | None = None
    clipped_square: Tensor | None = None
    for part in chunks(x):
        v = _columns(value, part)
        y = _columns(x, part) if in_place or buffer is None else _load(buffer, x, part, base)
        moved = _form(y, p, None if base is None else _columns(base, part), v)
        if row_squares is not None:
            pulled = _mix(y, a, moved)
            part_moments = _block_dots(y, moved)
        else:
            assert buffer is not None
            y = _load(buffer, x, part, value)
            pulled = _mix(y, a)
            part_moments = _block_gram(buffer[:, : part.stop - part.start])
        part_moved = block_squares(moved)
        part_clipped = torch.dot(pulled, pulled)
        if moments is None or moved_square is None or clipped_square is None:
            moments, moved_square, clipped_square = part_moments, part_moved, part_clipped
        else:
            moments += part_moments
            moved_square += part_moved
            clipped_square += part_clipped
    assert moments is not None
    assert moved_square is not None
    assert clipped_square is not None
    measured, square = moments.cpu().numpy(), float(moved_square)
    clipped_sum = scale * math.sqrt(float(clipped_square))
    size = _norm(value, square) if base is None else norm(value)
    if row_squares is None:
        g = measured[:n, :n]
        return Combined(value, size, g.diagonal(), clipped_sum, g)
    return Combined(value, size, np.maximum(row_squares - 2 * measured + square, 0.0), clipped_sum, None)
