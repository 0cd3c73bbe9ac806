"""Whether a gradient is the same to the bit when it is computed again, in other company, and alone.

Peers that validate each other with `validation: exact` need that of their gradients: `per_peer` promises all three,
`batched` that an equal call gives equal bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor

from btard.protocol.effects import Compute
from btard.protocol.hashing import digest
from btard.training.kernels import choose_exact_kernels
from resnet.gradients import Mode
from scripts.benchmarks.measure import interleaved, release
from scripts.benchmarks.workloads import PEERS, resnet_task
from scripts.gpu_checks.rows import NO_TIME, Row, Setting

EXACT = "as a run chooses"


def _deterministic() -> None:
    torch.backends.cudnn.deterministic = True


def _no_tf32() -> None:
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False


KERNELS: dict[str, Callable[[], object]] = {
    "torch's own": lambda: None,
    "cudnn.deterministic": _deterministic,
    "cudnn.deterministic, no TF32": _no_tf32,
    EXACT: lambda: choose_exact_kernels(torch.device("cuda")),
}
"""Name -> what switches to these kernels on a GPU."""


@contextmanager
def _kernels(name: str) -> Iterator[None]:
    """Inside, torch uses the kernels of this name."""
    cuda, cudnn, filled = torch.backends.cuda, torch.backends.cudnn, torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        filled.fill_uninitialized_memory,  # type: ignore[attr-defined]
        (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, cuda.matmul.allow_tf32),
        (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()),
    )
    KERNELS[name]()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        filled.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, cuda.matmul.allow_tf32 = before[2]
        enable = (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp)
        for switch, was in zip(enable, before[3], strict=True):
            switch(was)


def rows(setting: Setting) -> Iterator[Row]:
    sizes = ((4, 8),) if setting.tiny else ((4, 8), (16, 32), (64, 32))
    kernels = ("torch's own",) if setting.device == "cpu" else tuple(KERNELS)
    for (size, mode, name), share in setting.shares(list(itertools.product(sizes, get_args(Mode), kernels))):
        what = f"width {size[0]}, {mode}, {name}"
        if share.left <= 0:
            yield Row(what, NO_TIME)
            continue
        with _kernels(name):
            numbers = _measured(*size, setting.device, mode)
        same = numbers["equal rows"]
        said = ", ".join(f"{how} {count}/{of}" for how, (count, of) in same.items())
        judged = ("again", "in other company", "alone") if mode == "per_peer" else ("again",)
        must = setting.device == "cpu" or name == EXACT
        good = all(same[how][0] == same[how][1] for how in judged) if must else None
        ms = 1e3 * min(numbers["seconds"])
        yield Row(what, f"{said} (alone off by {numbers['alone off by']:.1e}), {ms:.1f} ms", good, numbers)


def _measured(width: int, size: int, device: str, mode: Mode) -> dict[str, Any]:
    """How many of the peers' rows have equal bits, and how long all of them take together."""
    release(device)
    task, params = resnet_task(width, size, device, mode)
    requests = [Compute(0, peer, digest("same bits", peer)) for peer in range(PEERS)]

    def run(peers: Sequence[int]) -> Tensor:
        out = torch.empty(len(peers), task.d, device=device)
        task.gradients(params, [requests[peer] for peer in peers], out)
        return out

    def equal(some: Tensor) -> tuple[int, int]:
        found = [torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in zip(some, whole, strict=False)]
        return sum(found), len(found)

    everybody = range(PEERS)
    whole = run(everybody)
    alone = torch.cat([run([peer]) for peer in everybody])
    return {
        "equal rows": {
            "again": equal(run(everybody)),
            "in other company": equal(run(everybody[:-1])),
            "alone": equal(alone),
        },
        "alone off by": float(((alone - whole).norm(dim=1) / whole.norm(dim=1)).max()),
        "seconds": interleaved({"all": lambda: run(everybody)}, 2, device, warmup=0)["all"],
    }
