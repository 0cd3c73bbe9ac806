"""What exact validation asks of a device, without one: its switches, and tasks that do not do as they should."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from btard.protocol.effects import Compute
from btard.task import QuadraticTask
from btard.training.kernels import check_bits, choose_exact_kernels

ADVICE = "use tolerant"


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch's, put back in the end."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    before = cudnn.benchmark, cuda.matmul.allow_tf32, cudnn.allow_tf32
    yield
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    cudnn.benchmark, cuda.matmul.allow_tf32, cudnn.allow_tf32 = before
    for enable in (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp):
        enable(True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_gpu_gets_kernels_that_repeat_their_bits(device: str, switches: None) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    choose_exact_kernels(torch.device(device))
    chosen = device == "cuda"
    assert torch.are_deterministic_algorithms_enabled() is chosen
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cudnn.benchmark is not chosen
    assert torch.backends.cuda.mem_efficient_sdp_enabled() is torch.backends.cuda.flash_sdp_enabled() is not chosen
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is chosen


class ByChance(QuadraticTask):
    """Adds up in another order each time."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        out *= 1 + 2**-23 * len(self.requests)


class ByCompany(QuadraticTask):
    """Chooses another kernel for more than one request."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        if len(requests) > 1:
            out *= 1 + 2**-23


def test_a_task_whose_bits_change_is_refused_with_the_way_out() -> None:
    params = torch.ones(20)
    check_bits(QuadraticTask(20), params, together=True, advice=ADVICE)
    check_bits(ByCompany(20), params, together=False, advice=ADVICE)
    with pytest.raises(ValueError, match=r"^a gradient computed twice on cpu has different bits, .*: use tolerant$"):
        check_bits(ByChance(20), params, together=False, advice=ADVICE)
    with pytest.raises(ValueError, match=r"^a gradient computed on cpu with others has other bits than alone, .*tol"):
        check_bits(ByCompany(20), params, together=True, advice=ADVICE)
