"""How fast whole steps of 16 peers are, and what of the time goes into waits for the GPU, kernels and copies."""

from __future__ import annotations

import json
import statistics
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from btard.drivers.local import LocalDriver
from btard.protocol.config import ProtocolConfig
from btard.training.garbage import only_new_garbage
from scripts.benchmarks.measure import release, timed
from scripts.benchmarks.step import BYZANTINE
from scripts.benchmarks.workloads import PEERS, resnet_task
from scripts.gpu_checks.rows import NO_TIME, Row, Setting

STEPS = 12
Commitments = Literal["ideal", "hashed"]
KINDS: tuple[Commitments, ...] = ("ideal", "hashed")


def rows(setting: Setting) -> Iterator[Row]:
    for commitments, share in setting.shares(KINDS):
        if share.left <= 0:
            yield Row(commitments, NO_TIME)
            continue
        with only_new_garbage():
            yield from _steps(commitments, share)


def _steps(commitments: Commitments, setting: Setting) -> Iterator[Row]:
    width, size = (4, 8) if setting.tiny else (64, 32)
    device, count = setting.device, 3 if setting.tiny else STEPS
    release(device)
    task, params = resnet_task(width, size, device)
    config = ProtocolConfig(peers=PEERS, byzantine=BYZANTINE, run_id="gpu check")
    driver = LocalDriver(config, task, commitments=commitments)
    times: list[float] = []
    phases: list[dict[str, float]] = []
    for step in range(2 + count):  # nobody validates in the first step, and the second warms that up
        result, spent = timed(partial(driver.step, params), device)
        if step >= 2:
            times.append(spent)
            phases.append(result.seconds)
        if setting.left <= 0 and len(times) >= 2:
            break
    what = f"width {width}, {commitments}"
    median, numbers = statistics.median(times), {"seconds": times, "phases": phases}
    said = f"{1 / median:.2f} steps/s ({1e3 * median:.1f} ms; {len(times)} steps)"
    if device != "cpu":
        numbers["peak bytes"] = torch.cuda.max_memory_allocated()
        said += f", peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB"
    yield Row(what, said, numbers=numbers)
    medians = {phase: statistics.median(step.get(phase, 0.0) for step in phases) for phase in phases[0]}
    yield Row(f"{what}: phases, ms", ", ".join(f"{phase} {1e3 * s:.1f}" for phase, s in medians.items()))
    if device != "cpu":
        yield _waits(what, driver, params)
        yield from _kernels(what, driver, params)


def _waits(what: str, driver: LocalDriver, params: torch.Tensor) -> Row:
    """Where in a step the host waits for the GPU."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            driver.step(params)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in seen if "synchroniz" in str(warning.message)]
    places = dict(Counter(f"{Path(wait.filename).name}:{wait.lineno}" for wait in waits).most_common())
    most = ", ".join(f"{count} at {place}" for place, count in list(places.items())[:8])
    return Row(f"{what}: synchronisations in a step", f"{len(waits)}: {most}", numbers={"places": places})


def _kernels(what: str, driver: LocalDriver, params: torch.Tensor) -> Iterator[Row]:
    """The kernels and the copies of a step, from torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        driver.step(params)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    yield from summary(what, events)


def summary(what: str, events: list[dict]) -> Iterator[Row]:
    """Two rows from the events of a trace in Chrome's format, whose times are in microseconds."""
    busy, copies, moved = Counter[str](), Counter[str](), Counter[str]()
    kernels = [event for event in events if event.get("cat") == "kernel"]
    for event in kernels:
        busy[event["name"]] += event["dur"]
    for event in events:
        if event.get("cat") == "gpu_memcpy":
            copies[event["name"]] += 1
            moved[event["name"]] += event["args"].get("bytes", 0)
    most = "; ".join(f"{name[:60]} {spent / 1e3:.2f}" for name, spent in busy.most_common(6))
    seconds = {name: spent / 1e6 for name, spent in busy.most_common(20)}
    numbers = {"kernels": len(kernels), "busy seconds": busy.total() / 1e6, "seconds of the longest": seconds}
    yield Row(f"{what}: kernels in a step", f"{len(kernels)}, {busy.total() / 1e3:.1f} ms busy; {most}", None, numbers)
    said = "; ".join(f"{count} x {name}, {moved[name] / 1e6:.1f} MB" for name, count in copies.most_common())
    numbers = {name: {"copies": count, "bytes": moved[name]} for name, count in copies.most_common()}
    yield Row(f"{what}: copies in a step", said or "none", numbers=numbers)
