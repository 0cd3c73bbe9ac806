"""What `validation="exact"` asks of a device: kernels that repeat their bits, and a check whether they do."""

from __future__ import annotations

import os

import torch

from btard.protocol.effects import Compute, Purpose
from btard.protocol.hashing import digest
from btard.task import Task


def choose_exact_kernels(device: torch.device) -> None:
    """On a GPU, let this whole process use kernels without atomic sums, and float32 without TF32.

    Call it before anything runs on the GPU: cuBLAS reads its workspace once. An operation that has no such kernel then
    raises RuntimeError, which names it. Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # All that is allocated here is written before it is read.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False  # it would choose by the clock
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    # The backward of these adds up in the order in which blocks happen to finish.
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)


def check_bits(task: Task, params: torch.Tensor, *, together: bool, advice: str) -> None:
    """Raise ValueError, in one line, unless `task` gives the same bits for the same request at `params` [d] again.

    `together`: also among other requests, as peers of one process ask. `advice`: the way out. Costs two gradients, or
    five with `together`.
    """
    requests = [Compute(0, peer, digest("same bits", peer), Purpose.VALIDATE) for peer in range(3)]
    rows = torch.empty(5, task.d, device=params.device)
    task.gradients(params, requests[:1], rows[:1])
    task.gradients(params, requests[:1], rows[1:2])
    if not _same_bits(rows[0], rows[1]):
        raise ValueError(
            f"a gradient computed twice on {params.device} has different bits, so that honest peers would convict each "
            f"other with validation exact: {advice}"
        )
    if together:
        task.gradients(params, [requests[1], requests[0], requests[2]], rows[2:])
        if not _same_bits(rows[0], rows[3]):
            raise ValueError(
                f"a gradient computed on {params.device} with others has other bits than alone, so that honest peers "
                f"would convict each other with validation exact: {advice}"
            )


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))
