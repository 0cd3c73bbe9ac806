"""Times every aggregation rule against one sum over the same memory, and CenteredClip against its textbook iteration.

    python -m scripts.benchmark_aggregation --out results/benchmark_aggregation

One run, rules interleaved, median and spread of several repeats; all claims are ratios to `x.sum()` of that run.
Writes `results.json` and `table.md`. The default size is ResNet-18's gradient from 16 peers: 0.7 GB of float32.

The textbook iteration `v <- v + mean_i (g_i - v) min(1, tau / D_i)` is timed on the data for a few iterations. How many
it takes to reach the same residual is found in Gram space, where its iterates have the same coefficients: there it is
cheap. Where even that does not arrive within the limit, the count is extrapolated from its rate of convergence at the
end, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch

from btard.aggregation import AGGREGATORS, centered_clip, clip_residual
from btard.aggregation.gram import gram


def textbook_iteration(x: torch.Tensor, v: torch.Tensor, tau: float, columns: int = 1 << 17) -> torch.Tensor:
    """One iteration on the data, in cache-sized blocks: a pass for the distances and a pass for the update."""
    squares = torch.zeros(len(x), dtype=torch.float64)
    parts = [slice(s, s + columns) for s in range(0, x.shape[1], columns)]
    for part in parts:
        squares += torch.linalg.vector_norm(x[:, part] - v[part], dim=1).double() ** 2
    factors = (torch.clamp(tau / squares.sqrt(), max=1.0) / len(x)).to(x.dtype)
    new = torch.empty_like(v)
    for part in parts:
        new[part] = v[part] + torch.mv((x[:, part] - v[part]).t(), factors)
    return new


def textbook_count(g: np.ndarray, tau: float, residual: float, limit: int) -> tuple[float, bool]:
    """Iterations that the textbook needs to reach `residual`, and whether the number is extrapolated.

    It starts at the mean of the nine rows of smallest norm, a start no worse than the coordinate-wise median and one
    that Gram space can express.
    """
    n = len(g)
    p = np.zeros(n)
    p[np.argsort(np.diag(g), kind="stable")[: n // 2 + 1]] = 1 / (n // 2 + 1)
    trace = []
    for count in range(limit):
        q = np.eye(n) - p
        distances = np.sqrt(np.maximum(((q @ g) * q).sum(1), 1e-300))
        step = (np.minimum(1.0, tau / distances) / n) @ q
        size = math.sqrt(max(float(step @ g @ step), 0.0)) / min(tau, float(np.median(distances)))
        if size <= residual:
            return float(count), False
        trace.append(size)
        p = p + step
    # Linear convergence: the rate over the last tenth carries on. An iteration still far away moves by tau at most.
    tail = trace[-limit // 10 :]
    rate = (tail[-1] / tail[0]) ** (1 / (len(tail) - 1))
    if rate >= 1:
        return math.inf, True
    return limit + math.log(residual / trace[-1]) / math.log(rate), True


def make_inputs(n: int, d: int, kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator)
    if kind == "scales":
        x *= torch.logspace(-1, 1, n)[:, None]
    elif kind == "attack":
        x[:7] *= -1000
    elif kind == "attack 1e6":
        x[:7] *= -1e6
    return x


def measure(tasks: dict, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of each task: interleaved, one unmeasured round, median with the smallest and largest."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {k: {"median": float(np.median(v)), "min": min(v), "max": max(v)} for k, v in times.items()}


def table(rows: list[dict], columns: list[str]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(str(row[c]) for c in columns) + " |" for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_aggregation"))
    parser.add_argument("--peers", type=int, default=16)
    parser.add_argument("--size", type=int, default=11_173_962, help="parameters of the model")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit", type=int, default=400_000, help="textbook iterations in Gram space to follow")
    args = parser.parse_args()
    if args.peers < 15:
        parser.error("--peers must be at least 15: seven rows attack, and bulyan runs with b = 3")

    clip_rows, rule_rows = [], []
    for kind in ("honest", "scales", "attack", "attack 1e6"):
        x = make_inputs(args.peers, args.size, kind)
        raw = gram(x)
        center = centered_clip(x, 1.0)
        taus = {"0.1": 0.1, "1": 1.0, "10": 10.0, "median distance": float(center.distances.median())}
        tasks = {"sum": lambda x=x: x.sum()}
        tasks |= {name: lambda x=x, tau=tau: centered_clip(x, tau) for name, tau in taus.items()}
        tasks["textbook iteration"] = lambda x=x, v=center.value: textbook_iteration(x, v, 1.0)
        times = measure(tasks, args.repeats)
        base = times["sum"]["median"]
        for name, tau in taus.items():
            result = centered_clip(x, tau)
            count, extrapolated = textbook_count(raw, tau, max(result.residual, 1e-7), args.limit)
            took = times[name]
            clip_rows.append(
                {
                    "rows": kind,
                    "tau": name,
                    "x.sum()": round(took["median"] / base, 1),
                    "spread": f"{took['min'] / base:.1f} to {took['max'] / base:.1f}",
                    "residual": f"{result.residual:.1e}",
                    "checked in float64": f"{clip_residual(x, result.value, tau):.1e}",
                    "iterations": result.iterations,
                    "textbook iterations": f"{count:.3g}" + (" (extrapolated)" if extrapolated else ""),
                    "textbook / this": f"{count * times['textbook iteration']['median'] / took['median']:.3g}",
                }
            )
            print(clip_rows[-1], flush=True)

        if kind == "attack":
            v = center.value
            tasks = {"sum": lambda x=x: x.sum()}
            tasks |= {name: lambda x=x, rule=rule: rule(x, byzantine=3, tau=10.0) for name, rule in AGGREGATORS.items()}
            tasks["clip_residual"] = lambda x=x, v=v: clip_residual(x, v, 1.0)
            if args.size <= 1 << 24:
                tasks["torch.median(dim=0), a sixteenth, times 16"] = lambda x=x: x[:, : x.shape[1] // 16].median(0)
            times = measure(tasks, max(3, args.repeats // 2))
            base = times["sum"]["median"]
            for name, took in times.items():
                factor = 16 if "times 16" in name else 1
                rule_rows.append(
                    {
                        "rule": name,
                        "x.sum()": round(factor * took["median"] / base, 1),
                        "spread": f"{factor * took['min'] / base:.1f} to {factor * took['max'] / base:.1f}",
                    }
                )
                print(rule_rows[-1], flush=True)
        del x, tasks

    small = make_inputs(15, 46_764, "attack")
    took = measure({"clip": lambda: centered_clip(small, 1.0), "sum": lambda: small.sum()}, 200)
    about = {
        "shape": [args.peers, args.size],
        "dtype": "float32",
        "repeats": args.repeats,
        "byzantine (rules)": 3,
        "device": f"{os.cpu_count()} CPU cores ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "load average at the end": os.getloadavg()[0],
        "torch": torch.__version__,
        "numpy": np.__version__,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset"),
    }
    small_call = {"shape": [15, 46_764], "milliseconds": {k: round(1e3 * v, 2) for k, v in took["clip"].items()}}
    args.out.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "centered_clip": clip_rows, "rules": rule_rows, "small_call": small_call}
    (args.out / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    text = [
        "# Aggregation, in units of one `x.sum()` over the same memory",
        "`python -m scripts.benchmark_aggregation --out results/benchmark_aggregation`",
        "; ".join(f"{k}: {v}" for k, v in about.items()),
        "## CenteredClip\n\nAll medians of one run; `spread` is the fastest and the slowest repeat. "
        "`textbook / this`: time of the textbook iteration to the same residual (at least 1e-7) over the time of ours; "
        "one iteration is timed on the data, their number is counted in Gram space.",
        table(clip_rows, list(clip_rows[0])),
        "## All rules (7 rows times -1000, b = 3, tau = 10)",
        table(rule_rows, list(rule_rows[0])),
        f"One call at {small_call['shape']}, tau 1, milliseconds: {small_call['milliseconds']}.",
    ]
    (args.out / "table.md").write_text("\n\n".join(text) + "\n")
    print(f"wrote {args.out / 'table.md'}")


if __name__ == "__main__":
    main()
