"""Random inputs for the comparison: rows of peers, drawn from named streams, the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from btard.protocol.hashing import stream

SIZES = ((11, 2), (12, 2), (16, 3))
"""Rows and Byzantine ones among them: odd and even, and enough for Bulyan."""
DIMENSIONS = (3, 40, 500)
KINDS = ("alike", "hostile", "uneven")
SEEDS = 4


@dataclass(frozen=True)
class Input:
    """Rows `x` [n, d] in float64; the first `f` of them are Byzantine if the kind is hostile."""

    name: str
    x: torch.Tensor
    f: int


def inputs() -> Iterator[Input]:
    """All inputs: rows about a common mean; the same with the first f rows far out; rows of very different lengths."""
    for n, f in SIZES:
        for d in DIMENSIONS:
            for kind in KINDS:
                for seed in range(SEEDS):
                    drawn = stream("conformance", kind, n, d, seed)
                    x = torch.from_numpy(drawn.standard_normal((n, d)) + 1.0)
                    if kind == "hostile":
                        x[:f] *= -1000.0
                    if kind == "uneven":
                        x *= torch.from_numpy(10.0 ** drawn.uniform(-1, 1, (n, 1)))
                    yield Input(f"{kind} {n} x {d}, seed {seed}", x, f)
