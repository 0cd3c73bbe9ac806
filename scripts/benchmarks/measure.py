"""Interleaved timing, the fits of growth, memory of a process, and what a page says about machine and versions."""

from __future__ import annotations

import gc
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]

Times = dict[str, list[float]]
"""Variant -> seconds of every repeat."""

PACKAGES = ("torch", "numpy", "cryptography", "blake3", "torchvision", "transformers", "byzfl", "byzpy")


@dataclass(frozen=True)
class Settings:
    """The sections' arguments: where to compute, and whether sizes are tiny because only the code is tested."""

    device: str = "cpu"
    quick: bool = False


def synchronise(device: str) -> None:
    """Wait for the accelerator, so that a clock read next counts what was started before."""
    if device != "cpu":
        torch.cuda.synchronize()


def timed(function: Callable[[], T], device: str) -> tuple[T, float]:
    """What `function` returns, and the seconds that it and the accelerator took for it."""
    synchronise(device)
    started = time.perf_counter()
    result = function()
    synchronise(device)
    return result, time.perf_counter() - started


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    device: str = "cpu",
    *,
    warmup: int = 1,
    patience: Mapping[str, float] | None = None,
) -> Times:
    """Seconds of each variant in every repeat. They take turns, so a slow minute of the machine is slow for all.

    The first `warmup` rounds are not counted. A variant with `patience` (variant -> seconds) sits out once it has used
    it up; of one that does so while warming up that time is what counts.
    """
    times: Times = {name: [] for name in variants}
    left = {name: (patience or {}).get(name, math.inf) for name in variants}
    for repeat in range(warmup + repeats):
        for name, function in variants.items():
            if left[name] <= 0:
                continue
            _, spent = timed(function, device)
            left[name] -= spent
            if repeat >= warmup or left[name] <= 0:
                times[name].append(spent)
    return times


def in_units(times: Sequence[float], unit: Sequence[float]) -> float:
    """The median of `times` over the median of `unit`."""
    return statistics.median(times) / statistics.median(unit)


def ratio(times: Sequence[float], unit: Sequence[float], digits: int = 1) -> str:
    """`median (min to max)` of `times` in units of the median of `unit`."""
    base = statistics.median(unit)
    if len(times) == 1:
        return f"{times[0] / base:.{digits}f} (once)"
    middle, low, high = (f"{value / base:.{digits}f}" for value in (statistics.median(times), min(times), max(times)))
    return f"{middle} ({low} to {high})"


def slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Exponent of growth: the slope of log(value) over log(size) in the upper half of the sizes, at least two."""
    half = min(len(sizes) // 2, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def fit(basis: Mapping[str, Sequence[float]], values: Sequence[float]) -> dict[str, Any]:
    """Coefficients of the terms in `basis` (name -> its value in each case), none negative; least relative squares.

    `largest error` is the largest relative deviation of a fitted value. A term whose best coefficient would be
    negative is left out: no part of a cost is.
    """
    columns = np.array(list(basis.values()), dtype=float).T / np.array(values)[:, None]
    used = list(range(columns.shape[1]))
    while True:
        found = np.linalg.lstsq(columns[:, used], np.ones(len(values)), rcond=None)[0]
        if (found >= 0).all():
            break
        del used[int(found.argmin())]
    coefficients = np.zeros(columns.shape[1])
    coefficients[used] = found
    error = float(np.abs(columns @ coefficients - 1).max())
    return {"coefficients": dict(zip(basis, coefficients.tolist(), strict=True)), "largest error": error}


def output_of(words: Sequence[str], *, minutes: float | None = None) -> str:
    """What `python WORDS` prints. Errors: RuntimeError with its last words if it fails or takes over `minutes`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            printed, errors = process.communicate(timeout=None if minutes is None else 60 * minutes)
        except BaseException as error:
            process.terminate()  # torchrun ends its processes, too
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise RuntimeError(f"{' '.join(command)} took longer than {minutes} minutes") from None
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {errors[-2000:]}")
    return printed


def memory(field: str) -> int:
    """Bytes of this process's memory from /proc: `VmRSS` now, `VmHWM` at its peak. Linux alone has it.

    `getrusage` would not do: its peak is handed on from the process that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise RuntimeError(f"/proc/self/status has no {field}: memory is measured on Linux only")


def release(device: str) -> None:
    """Free the memory of the case before, so that the next one is not measured on a full machine."""
    gc.collect()
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def load() -> float:
    """Load average of the last minute: if it is above the number of busy cores, other programs were computing, too."""
    return round(os.getloadavg()[0], 2)


def machine(device: str) -> dict[str, Any]:
    """Hardware in words, threads and versions."""
    hardware = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if device != "cpu":
        hardware = f"{torch.cuda.get_device_name()}, {hardware}"
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "versions": versions,
    }
