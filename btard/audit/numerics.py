"""What the bits of a computation depend on besides its inputs: the numeric platform, in one short line."""

from __future__ import annotations

import platform
import re
from functools import lru_cache

import torch

MAX_PLATFORM = 200
"""Maximum length of a platform's name."""


@lru_cache
def numeric_platform(device: str = "cpu") -> str:
    """PyTorch's version, the processor with the instructions that PyTorch uses on it, BLAS, the dtype, and the GPU.

    Where two are equal, equal inputs have given equal bits. Where they are not, they may or may not.
    """
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    words = [
        f"torch {torch.__version__}",
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        f"blas {blas.group(1) if blas else 'unknown'}",
        "float32",
    ]
    if device.startswith("cuda"):
        words.append(torch.cuda.get_device_name(device))
    return ", ".join(words)[:MAX_PLATFORM]
