"""Steps per second of the local driver, against a plain large-batch step and against one process per peer."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from btard.drivers.local import LocalDriver
from btard.harness.run_folder import read_summary, read_timings
from btard.protocol.config import ProtocolConfig
from scripts.benchmarks.measure import Settings, in_units, interleaved, ratio, release
from scripts.benchmarks.page import Aim, Table
from scripts.benchmarks.workloads import BATCH, PEERS, PLAIN, gradient_variants, resnet_task

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 5
"""A run of `resnet.train` that takes longer is stopped."""


def cases(settings: Settings) -> dict[str, Callable[[], Any]]:
    if settings.quick:
        return {
            "width 4 tau 1": partial(plain_case, 4, 8, 1.0, 1, settings),
            "processes 0": partial(processes_case, 2, 0, 2, 1, settings),
        }
    return {
        "width 16 tau 1": partial(plain_case, 16, 32, 1.0, 12, settings),
        "width 16 tau 10": partial(plain_case, 16, 32, 10.0, 12, settings),
        "width 64 tau 1": partial(plain_case, 64, 32, 1.0, 3, settings),
        "processes 0": partial(processes_case, PEERS, 0, 12, 2, settings),
        "processes 7": partial(processes_case, PEERS, 7, 12, 1, settings),
    }


def plain_case(width: int, size: int, tau: float, repeats: int, settings: Settings) -> dict[str, Any]:
    """A whole step of the cohort and the plain step on as many samples, in turns."""
    release(settings.device)
    task, params = resnet_task(width, size, settings.device)
    config = ProtocolConfig(peers=PEERS, byzantine=7, tau=tau, run_id="benchmark")
    driver = LocalDriver(config, task)

    def step() -> None:
        params.sub_(driver.step(params).gradient, alpha=0.001)

    plain = {name: run for name, run in gradient_variants(width, size, settings.device).items() if name in PLAIN}
    # Nobody validates in the first step.
    times = interleaved({**plain, "btard": step}, repeats, settings.device, warmup=2)
    return {"width": width, "size": size, "tau": tau, "d": task.d, "seconds": times}


def processes_case(peers: int, byzantine: int, steps: int, repeats: int, settings: Settings) -> dict[str, Any]:
    """Steps per second of the same training in one process, in both modes, and in a process per peer, in turns."""
    release(settings.device)
    words = ["configs/resnet/digits.yaml", f"--peers={peers}", f"--byzantine={byzantine}"]
    words += [f"--steps={steps}", f"--eval_every={steps}", f"--checkpoint_every={steps}", "--test_samples=50"]
    words += [f"--device={settings.device}", f"--protocol.validators={int(peers > 2)}"]
    if byzantine:
        words += ["--attack.name=sign_flip", "--attack.start=2"]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={peers}"]
    ways: dict[str, tuple[list[str], list[str]]] = {
        "one process": ([], ["--mode=batched"]),
        "one process, per_peer": ([], ["--mode=per_peer", "--threads=1"]),
        "a process per peer": (launch, ["--threads=1"]),
    }
    if settings.quick:
        del ways["one process, per_peer"]
    found: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            for name, (launcher, mode) in ways.items():
                out = Path(folder, f"{name} {repeat}")
                summary, seconds = _train([*launcher, "-m", "resnet.train", *words, *mode, f"--out={out}"], out)
                # The first steps fill caches and start threads, and nobody validates in the very first.
                found[name].append(1 / statistics.median(seconds[2:] or seconds))
    return {
        "peers": peers,
        "byzantine": byzantine,
        "steps": steps,
        "d": summary["parameters"],
        "steps_per_second": found,
    }


def _train(words: list[str], out: Path) -> tuple[dict[str, Any], list[float]]:
    """Run `python WORDS`; the summary that it leaves in `out`, and the seconds of its steps.

    Errors: RuntimeError with its last words if it fails or takes longer than `MINUTES`.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            _, errors = process.communicate(timeout=60 * MINUTES)
        except BaseException as error:
            process.terminate()  # torchrun ends its processes, too
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise RuntimeError(f"{' '.join(command)} took longer than {MINUTES} minutes") from None
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {errors[-2000:]}")
    summary = read_summary(out)
    if summary is None:
        raise RuntimeError(f"{' '.join(command)} left no summary")
    return summary, [sum(spent for phase, spent in line.items() if phase != "step") for line in read_timings(out)]


def tables(results: dict[str, Any]) -> list[Table]:
    plain = [case for name, case in results.items() if name.startswith("width ")]
    processes = [case for name, case in results.items() if name.startswith("processes ")]
    return [_plain_table(plain), _processes_table(processes)]


def aims(results: dict[str, Any]) -> list[Aim]:
    plain = [case for name, case in results.items() if name.startswith("width ")]
    narrow = [case for case in plain if case["width"] == min(other["width"] for other in plain)]
    against = [in_units(case["seconds"]["btard"], case["seconds"]["plain"]) for case in narrow]
    processes = [case for name, case in results.items() if name.startswith("processes ")]
    faster = [in_units(*(c["steps_per_second"][n] for n in ("one process", "a process per peer"))) for c in processes]
    return [
        Aim(f"BTARD step / plain step on the same samples, width {narrow[0]['width']}", 1.6, max(against)),
        Aim(f"steps/s in one process / in {processes[0]['peers']} processes, digits", 10, min(faster), least=True),
    ]


def _plain_table(found: list[dict[str, Any]]) -> Table:
    rows = []
    for case in found:
        times = case["seconds"]
        rows.append(
            [
                f"width {case['width']}, tau {case['tau']:g}",
                f"{1 / statistics.median(times['btard']):.3f}",
                f"{1 / statistics.median(times['plain']):.3f}",
                *(ratio(times["btard"], times[name], 2) for name in PLAIN),
            ]
        )
    return Table(
        "A whole BTARD step in one process against a plain step on the same number of samples",
        ["ResNet-18", "BTARD, steps/s", "plain, steps/s", "BTARD / plain", "BTARD / plain channels_last"],
        rows,
        f"{PEERS} peers x {BATCH} samples, everything included: a gradient per peer, hashes, signatures, CenteredClip, "
        "coin, reports, verification and a validator, whose gradient is remembered, not computed again. `plain`: one "
        "forward and backward with one gradient, in torch's default memory format and in channels_last.",
    )


def _processes_table(found: list[dict[str, Any]]) -> Table:
    rows = []
    for case in found:
        speeds = case["steps_per_second"]
        many = speeds["a process per peer"]
        names = list(speeds)
        rows.append(
            [
                f"{case['peers']} peers, {case['byzantine']} attackers",
                *(f"{statistics.median(speeds[name]):.2f}" for name in names),
                *(ratio(speeds[name], many) for name in names if name != "a process per peer"),
            ]
        )
    names = list(found[0]["steps_per_second"])
    case = found[0]
    return Table(
        "One process against a process for each peer, steps per second",
        ["digits", *names, *(f"{name} / a process per peer" for name in names[:-1])],
        rows,
        f"`resnet.train configs/resnet/digits.yaml`, {case['d']:,} parameters, {case['steps']} steps, "
        "where latency rules; medians over the steps after the first two. `per_peer` computes what the processes "
        "compute, to the bit and with one thread as they do: validators recompute, and no gradients are batched. "
        "Attackers flip signs from step 2 on until they are banned.",
    )
