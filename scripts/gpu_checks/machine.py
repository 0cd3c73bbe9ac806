"""How fast the machine moves and hashes tensors, and torch's own choice of kernels."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from btard.protocol.hashing import tensor_digest
from scripts.benchmarks.measure import interleaved
from scripts.gpu_checks.rows import Row, Setting

READS = 1000
"""How often one number is read from the device."""


def rows(setting: Setting) -> Iterator[Row]:
    size = 2 ** (20 if setting.tiny else 28)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    flags = {
        "cudnn.allow_tf32": cudnn.allow_tf32,
        "cudnn.deterministic": cudnn.deterministic,
        "cudnn.benchmark": cudnn.benchmark,
        "matmul.allow_tf32": matmul.allow_tf32,
    }
    yield Row("torch's own kernels", ", ".join(f"{name} {value}" for name, value in flags.items()), numbers=flags)
    if setting.device != "cpu":
        yield _to_host(size)
        yield _one_number()
    yield _hashing(size, setting.device)


def _to_host(size: int) -> Row:
    """Device to host: into memory that is there already, into new memory, and into pinned memory."""
    x = torch.empty(size, dtype=torch.uint8, device="cuda")
    there, pinned = torch.empty(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8, pin_memory=True)
    ways = {"pageable": lambda: there.copy_(x), "new pageable": x.cpu, "pinned": lambda: pinned.copy_(x)}
    times = interleaved(ways, 5, "cuda")
    return Row("device to host, GB/s", _speeds(times, size), numbers={"bytes": size, "seconds": times})


def _one_number() -> Row:
    one = torch.ones(1, device="cuda")
    times = interleaved({"reads": lambda: [float(one) for _ in range(READS)]}, 5, "cuda")["reads"]
    each = [spent / READS for spent in times]
    return Row("float(tensor), us", f"{1e6 * statistics.median(each):.1f}", numbers={"seconds": each})


def _hashing(size: int, device: str) -> Row:
    x = torch.zeros(size, dtype=torch.uint8)
    ways = {
        "1 thread": lambda: tensor_digest(x, "x"),
        "all cores": lambda: tensor_digest(x, "x", parallel=True),
    }
    times = interleaved(ways, 3, device)
    return Row("hashing, GB/s", _speeds(times, size), numbers={"bytes": size, "seconds": times})


def _speeds(times: dict[str, list[float]], size: int) -> str:
    return ", ".join(f"{way} {size / statistics.median(spent) / 1e9:.1f}" for way, spent in times.items())
