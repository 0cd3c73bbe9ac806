"""Times a whole BTARD step of 16 peers with 8 samples each against one plain step on the same 128 samples.

    python -m scripts.benchmark_step --out results/benchmark_step

Everything is included: gradients per peer, hashes, signatures, CenteredClip, coin, reports, verification and a
validator (in mode `batched`, so its gradient is remembered, not computed again). The plain step is an ordinary forward
and backward with one gradient. All are interleaved in one run; the claims are ratios of medians. Writes `results.json`
and `table.md`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections import Counter
from pathlib import Path

# As `resnet` sets it for a run; here torch is imported first.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from btard.drivers.local import LocalDriver
from btard.protocol.config import ProtocolConfig
from resnet.data import Dataset
from resnet.model import flatten, resnet18
from resnet.sampling import TrainingData
from resnet.task import ClassificationTask
from scripts.benchmark_gradients import BATCH, PEERS, make_variants

PLAIN = ("plain", "plain channels_last")


def random_images(count: int = 512) -> Dataset:
    """Images of CIFAR-10's shape; what is on them does not matter here."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 10
    return Dataset(
        train_images=images,
        train_labels=labels,
        test_images=images[:10],
        test_labels=labels[:10],
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        label="random images",
        class_names=tuple(map(str, range(10))),
        mirror=True,
    )


def measure(width: int, tau: float, repeats: int, device: str) -> dict[str, object]:
    """Medians in seconds, their ratios, and the share of every phase of a step."""
    variants = {name: run for name, run in make_variants(width, 32, device).items() if name in PLAIN}
    model = resnet18(width).to(device)
    task = ClassificationTask(
        model, TrainingData(random_images(), device), peers=PEERS, batch_size=BATCH, mode="batched"
    )
    driver = LocalDriver(ProtocolConfig(peers=PEERS, byzantine=7, tau=tau, run_id="benchmark"), task)
    params = flatten(model)
    seconds: dict[str, list[float]] = {name: [] for name in (*variants, "btard")}
    phases: Counter[str] = Counter()
    for repeat in range(repeats + 2):
        for name in seconds:
            started = time.perf_counter()
            result = variants[name]() if name in variants else driver.step(params)
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:  # the first ones fill caches and start threads
                seconds[name].append(time.perf_counter() - started)
        if repeat >= 2:
            phases.update(result.seconds)  # type: ignore[attr-defined]
        params = params - 0.001 * result.gradient  # type: ignore[attr-defined]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    total = sum(phases.values())
    return {
        "width": width,
        "parameters": task.d,
        "tau": tau,
        "seconds": {name: [min(times), medians[name], max(times)] for name, times in seconds.items()},
        "btard_to_plain": medians["btard"] / medians["plain"],
        "btard_to_fastest_plain": medians["btard"] / min(medians[name] for name in variants),
        "phases": {phase: spent / total for phase, spent in phases.most_common()},
    }


def table(cases: list[dict[str, object]]) -> str:
    lines = [
        "| width | tau | plain, s | BTARD / plain | BTARD / plain channels_last | phases of the BTARD step |",
        "| ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for case in cases:
        seconds: dict[str, list[float]] = case["seconds"]  # type: ignore[assignment]
        ratio = seconds["btard"][1] / seconds["plain channels_last"][1]
        shares: dict[str, float] = case["phases"]  # type: ignore[assignment]
        phases = ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items() if share >= 0.01)
        lines.append(
            f"| {case['width']} | {case['tau']:g} | {seconds['plain'][1]:.3f} | {case['btard_to_plain']:.2f} "
            f"| {ratio:.2f} | {phases} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for results.json and table.md")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--widths", type=int, nargs="+", default=[16])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    cases = [measure(width, tau, options.repeats, options.device) for width in options.widths for tau in (1.0, 10.0)]
    where = (
        f"{options.device}, {os.cpu_count()} CPU cores, torch {torch.__version__}, Python {platform.python_version()}"
    )
    header = (
        f"16 peers x 8 samples of 32x32; {where}; {options.repeats} interleaved repeats, medians; load average "
        f"{load:.1f} at the start.\n"
    )
    text = f"{header}\n{table(cases)}\n"
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "table.md").write_text(text)
        (options.out / "results.json").write_text(json.dumps({"where": where, "load": load, "cases": cases}, indent=2))


if __name__ == "__main__":
    main()
