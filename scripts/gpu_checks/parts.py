"""Aggregation and reports at the size of a part of ResNet-18, whose columns do not start on a cache line."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping

import torch

from btard.aggregation import centered_clip
from btard.protocol.directions import part_directions
from btard.protocol.scalars import row_scalars
from scripts.benchmarks.measure import interleaved
from scripts.gpu_checks.rows import Row, Setting
from scripts.traffic import RESNET18

WORKERS = 15
TAU = 10.0
CLOSE = 1e-5
"""Largest relative distance of a CenteredClip in float32 from one in float64."""


def rows(setting: Setting) -> Iterator[Row]:
    device, p = setting.device, 4_000 if setting.tiny else -(-RESNET18 // WORKERS)
    generator = torch.Generator().manual_seed(0)
    big = torch.randn(WORKERS, 2 * p + 7, generator=generator).to(device)
    x = big[:, p + 3 : 2 * p + 3]
    y = x.contiguous()

    def timed(what: str, ways: Mapping[str, Callable[[], object]], more: str = "") -> Row:
        times = interleaved(ways, 5, device)
        said = ", ".join(f"{way} {1e3 * statistics.median(spent):.2f}" for way, spent in times.items())
        return Row(f"{what}, ms", said + more, numbers={"p": p, "seconds": times})

    equal = torch.equal(centered_clip(x, TAU).value, centered_clip(y, TAU).value)
    ways = {"as it lies": lambda: centered_clip(x, TAU), "copied": lambda: centered_clip(y, TAU)}
    yield timed(f"CenteredClip [{WORKERS}, {p:,}]", ways, f"; equal bits: {'yes' if equal else 'no'}")
    a = x.mean(0, keepdim=True)
    z = torch.randint(-(2**15), 2**15 - 1, (1, 1, p), dtype=torch.int16, generator=generator).to(device)
    yield timed(
        "norms and products",
        {
            "rows together": lambda: row_scalars(x, a, z, 1.0),
            "one by one": lambda: [row_scalars(x[row : row + 1], a, z, 1.0) for row in range(WORKERS)],
        },
    )
    yield timed("directions of a step", {"drawn": lambda: part_directions(b"coin", 0, WORKERS, p, 1, device)})
    yield _against_float64(x)


def _against_float64(x: torch.Tensor) -> Row:
    """CenteredClip in float32, and with TF32 in the products of matrices, where a GPU has it."""
    truth = centered_clip(x.double().cpu(), TAU).value

    def off() -> float:
        return float((centered_clip(x, TAU).value.double().cpu() - truth).norm() / truth.norm())

    plain, before = off(), torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        low = off()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    numbers = {"float32": plain, "TF32 products": low}
    return Row("CenteredClip against float64", f"off by {plain:.1e}; with TF32 {low:.1e}", plain < CLOSE, numbers)
