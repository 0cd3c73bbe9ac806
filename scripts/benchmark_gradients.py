"""Times the gradients of 16 peers with 8 samples each against one plain step on the same 128 samples.

    python -m scripts.benchmark_gradients --out results/benchmark_gradients

The plain step is an ordinary forward and backward with batch normalisation over all samples and one gradient; the
default PyTorch memory format is the unit, and channels_last is shown beside it because it is what this repository
trains in. All variants are interleaved in one run; the claims are ratios of medians. Writes `results.json` and
`table.md`. Run it on a quiet machine: with another program on the same cores, the variants whose kernels wait for each
other lose most.
"""

from __future__ import annotations

import os

# Busy waiting between kernels would disturb the variants that are measured next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from resnet.gradients import CohortGradients
from resnet.model import bind, flatten, parameter_count, resnet18

PEERS, BATCH = 16, 8
CASES = {
    "width 16, 32x32": (16, 32),
    "width 64, 32x32": (64, 32),
    "width 8, 32x32": (8, 32),
    "width 16, 16x16": (16, 16),
}
CASES |= {"width 8, 16x16": (8, 16), "width 8, 8x8": (8, 8)}
VARIANTS = ("plain", "plain channels_last", "loop", "threads", "folded")


class Forced(CohortGradients):
    """Computes every size in the given way."""

    forced: Literal["threads", "folded"] = "threads"

    def strategy(self, images: Tensor) -> Literal["threads", "folded"]:
        return self.forced


def make_variants(width: int, size: int, device: str) -> dict[str, Callable[[], object]]:
    """One function per variant, all on the same parameters and samples."""
    model = resnet18(width).to(device)
    flat = flatten(model)
    bound = resnet18(width).to(device)
    bind(bound, flat)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(PEERS, BATCH, 3, size, size, generator=generator).to(device)
    labels = torch.randint(0, 10, (PEERS, BATCH), generator=generator).to(device)
    out = torch.empty(PEERS, len(flat), device=device)

    def plain(network: torch.nn.Module, samples: Tensor, target: Tensor, memory: torch.memory_format) -> object:
        loss = F.cross_entropy(network(samples.contiguous(memory_format=memory)), target)
        return torch.autograd.grad(loss, list(network.parameters()))

    def loop() -> None:
        for peer in range(PEERS):
            gradients = plain(bound, images[peer], labels[peer], torch.channels_last)
            torch.cat([gradient.reshape(-1) for gradient in gradients], out=out[peer])  # type: ignore[attr-defined]

    threads, folded = Forced(model), Forced(model)
    folded.forced = "folded"
    every, target = images.flatten(0, 1), labels.flatten()
    return {
        "plain": lambda: plain(model, every, target, torch.contiguous_format),
        "plain channels_last": lambda: plain(bound, every, target, torch.channels_last),
        "loop": loop,
        "threads": lambda: threads(flat, images, labels, out),
        "folded": lambda: folded(flat, images, labels, out),
    }


def measure(variants: dict[str, Callable[[], object]], seconds: float, device: str) -> dict[str, list[float]]:
    """Seconds of every repeat, the variants taking turns, for about so many seconds and at least five repeats."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    end = None
    while end is None or time.perf_counter() < end or len(times["plain"]) < 5:
        for name, function in variants.items():
            start = time.perf_counter()
            function()
            if device != "cpu":
                torch.cuda.synchronize()
            if end is not None:  # The first round warms up.
                times[name].append(time.perf_counter() - start)
        end = end or time.perf_counter() + seconds
    return times


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """A Markdown table of ratios to the plain step, and of its seconds."""
    lines = ["| case | plain, s | " + " | ".join(VARIANTS[1:]) + " |", "| --- |" + " ---: |" * len(VARIANTS)]
    for case, times in results.items():
        unit = statistics.median(times["plain"])
        ratios = [f"{statistics.median(times[name]) / unit:.2f}" for name in VARIANTS[1:]]
        lines.append(f"| {case} | {unit:.3f} | " + " | ".join(ratios) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json and table.md")
    parser.add_argument("--seconds", type=float, default=15, help="how long to measure each case")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    results, parameters = {}, {}
    for case in arguments.cases:
        width, size = CASES[case]
        results[case] = measure(make_variants(width, size, arguments.device), arguments.seconds, arguments.device)
        parameters[case] = parameter_count(resnet18(width))
        print(table({case: results[case]}), flush=True)
    cuda = arguments.device != "cpu"
    about = {
        "device": torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU cores",
        "load average at start and end": [load, os.getloadavg()[0]],
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "tv": torchvision.__version__},
        "peers": PEERS,
        "samples per peer": BATCH,
        "parameters": parameters,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "results.json").write_text(json.dumps({**about, "seconds": results}, indent=1) + "\n")
    head = (
        f"{PEERS} peers x {BATCH} samples, {about['device']}; ratios of medians to the plain step of the same row. "
        f"Load average {load:.1f} at the start, {os.getloadavg()[0]:.1f} at the end.\n\n"
    )
    (arguments.out / "table.md").write_text(head + table(results))


if __name__ == "__main__":
    main()
