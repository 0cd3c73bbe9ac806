"""Rows that are separate in memory as one matrix, without a copy if possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stack_rows(rows: Sequence[Tensor]) -> Tensor:
    """The vectors `rows`, each [d], as a matrix [n, d] that must not be written to.

    Equally spaced pieces of one storage, such as the same columns of a matrix's rows, are seen where they lie; anything
    else is copied. Errors: as `torch.stack`.
    """
    if not rows:
        return torch.stack(list(rows))
    first = rows[0]
    d, start = first.shape[0] if first.dim() == 1 else -1, first.storage_offset()
    spacing = rows[1].storage_offset() - start if len(rows) > 1 else d
    storage = first.untyped_storage().data_ptr()
    side_by_side = spacing >= d > 0 and all(
        row.shape == first.shape
        and row.dtype == first.dtype
        and row.is_contiguous()
        and row.storage_offset() == start + index * spacing
        and row.untyped_storage().data_ptr() == storage
        for index, row in enumerate(rows)
    )
    return first.as_strided((len(rows), d), (spacing, 1)) if side_by_side else torch.stack(list(rows))
