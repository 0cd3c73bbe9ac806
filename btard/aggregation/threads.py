"""How many threads torch's kernels run in: it decides how sums are split, and so the last bits.

The protocol's arithmetic always runs on one, for peers and auditors alike, so that its results do not depend on how
many cores a machine has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kernel_threads(count: int) -> Iterator[None]:
    """Inside, torch's kernels called from this thread run in `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
