"""Every aggregation rule against one read of the memory, the textbook CenteredClip, and other libraries."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from btard.aggregation import AGGREGATORS, centered_clip, clip_residual
from btard.aggregation.gram import gram
from scripts.benchmarks.libraries import OTHERS, STEPS, Rule, rules_of
from scripts.benchmarks.measure import Settings, Times, in_units, interleaved, ratio, release
from scripts.benchmarks.page import Aim, Table, of_kind
from scripts.benchmarks.textbook import textbook_count, textbook_iteration

RESNET18, ALBERT_LARGE = 11_173_962, 17_700_000
SHAPES: tuple[tuple[int, int], ...] = ((16, 1_000_000), (16, RESNET18), (64, 1_000_000), (16, ALBERT_LARGE))
SMALL: tuple[tuple[int, int], ...] = ((15, 46_764), (15, 67))
TAU = 10.0
LONGEST = 2.0
"""Seconds: a call of another library's rule that would take longer, by a sixteenth of the columns, is not made."""
PATIENCE = 1.0
"""Seconds after which another library's rule is not repeated any more."""
LIMIT = 50_000
"""Textbook iterations to follow in Gram space."""


def make_input(n: int, d: int, kind: str, device: str) -> Tensor:
    """Standard normal rows [n, d]; `attack`: seven of sixteen times -1000; `scales`: norms over two decades."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    if kind == "scales":
        x *= torch.logspace(-1, 1, n)[:, None]
    elif kind.startswith("attack"):
        x[: 7 * n // 16] *= -1e6 if kind == "attack 1e6" else -1e3
    return x.to(device)


def withstood(n: int) -> int:
    """The most Byzantine rows for which every rule has a guarantee, Bulyan's included."""
    return (n - 3) // 4


def cases(settings: Settings) -> dict[str, Callable[[], Any]]:
    shapes, small, main = SHAPES, SMALL, (16, RESNET18)
    if settings.quick:
        shapes, small, main = ((16, 4_000), (64, 1_000)), ((15, 67),), (16, 4_000)
    repeats = 2 if settings.quick else 5
    found: dict[str, Callable[[], Any]] = {}
    for kind in ("honest", "scales", "attack", "attack 1e6"):
        found[f"clip {kind}"] = partial(clip_case, *main, kind, repeats, settings)
    for n, d in shapes:
        for kind in ("honest", "attack"):
            found[f"rules {n}x{d} {kind}"] = partial(rules_case, n, d, kind, min(3, repeats), settings)
    for n, d in small:
        found[f"small {n}x{d}"] = partial(small_case, n, d, 10 if settings.quick else 100, settings)
    return found


def clip_case(n: int, d: int, kind: str, repeats: int, settings: Settings) -> dict[str, Any]:
    """CenteredClip for radii far below, at and about the distances, compared with the textbook iteration."""
    release(settings.device)
    x = make_input(n, d, kind, settings.device)
    center = centered_clip(x, 1.0)
    taus = {"0.1": 0.1, "1": 1.0, "10": 10.0, "median distance": float(center.distances.median())}
    variants: dict[str, Callable[[], object]] = {"x.sum()": x.sum}
    variants |= {name: partial(centered_clip, x, tau) for name, tau in taus.items()}
    variants["textbook iteration"] = partial(textbook_iteration, x, center.value, 1.0)
    times = interleaved(variants, repeats, settings.device)
    rows, raw = [], gram(x)
    for name, tau in taus.items():
        result = centered_clip(x, tau)
        count = textbook_count(raw, tau, max(result.residual, 1e-7), 2_000 if settings.quick else LIMIT)
        rows.append(
            {
                "tau": name,
                "residual": result.residual,
                "checked in float64": clip_residual(x, result.value, tau),
                "iterations": result.iterations,
                "textbook iterations": count.iterations,
                "extrapolated": count.extrapolated,
                f"textbook residual after {STEPS}": count.residuals[STEPS],
            }
        )
    return {"n": n, "d": d, "rows": kind, "seconds": times, "taus": rows}


def rules_case(n: int, d: int, kind: str, repeats: int, settings: Settings) -> dict[str, Any]:
    """Every rule of ours, and those of other libraries that are fast enough, on one input."""
    release(settings.device)
    x, b = make_input(n, d, kind, settings.device), withstood(n)
    variants: dict[str, Callable[[], object]] = {"x.sum()": x.sum}
    variants |= {name: partial(rule, x, byzantine=b, tau=TAU) for name, rule in AGGREGATORS.items()}
    value = centered_clip(x, TAU).value
    variants["clip_residual"] = partial(clip_residual, x, value, TAU)
    results: dict[str, Tensor] = {"centered_clip": value}
    skipped: dict[str, str] = {}
    projected: dict[str, float] = {}
    for other in OTHERS:
        rules = rules_of(other, b, TAU)
        if isinstance(rules, str):
            skipped[other] = rules
            continue
        for name, rule in rules.items():
            expected = _seconds_to_expect(rule, x)
            if isinstance(expected, str):
                skipped[f"{other} {name}"] = expected
                continue
            if expected > LONGEST:
                projected[f"{other} {name}"] = expected
                continue
            keep = name == "centered_clip"
            variants[f"{other} {name}"] = partial(_call, rule, x, results if keep else {}, f"{other} {name}")
    patience = {name: PATIENCE for name in variants if name.startswith(OTHERS)}
    times = interleaved(variants, repeats, settings.device, patience=patience)
    return {
        "n": n,
        "d": d,
        "rows": kind,
        "byzantine": b,
        "seconds": times,
        "residuals": {name: clip_residual(x, value, TAU) for name, value in results.items()},
        "projected": projected,
        "skipped": skipped,
    }


def _call(rule: Rule, x: Tensor, results: dict[str, Tensor], name: str) -> None:
    results[name] = rule(x)


def _seconds_to_expect(rule: Rule, x: Tensor) -> float | str:
    """How long `rule` takes on all of `x`, judged by a sixteenth of the columns; or why it refuses."""
    part = x[:, : max(1, x.shape[1] // 16)].contiguous()
    try:
        rule(part[:, :64])
        started = time.perf_counter()
        float(rule(part)[0])  # reading a number waits for an accelerator
        return 16 * (time.perf_counter() - started)
    except (ValueError, RuntimeError) as error:
        return f"refuses: {str(error).splitlines()[0]}"


def small_case(n: int, d: int, repeats: int, settings: Settings) -> dict[str, Any]:
    """Calls so small that launching them dominates."""
    x, b = make_input(n, d, "attack", settings.device), withstood(n)
    variants: dict[str, Callable[[], object]] = {"x.sum()": x.sum}
    variants |= {name: partial(rule, x, byzantine=b, tau=TAU) for name, rule in AGGREGATORS.items()}
    return {"n": n, "d": d, "byzantine": b, "seconds": interleaved(variants, repeats, settings.device, warmup=5)}


def tables(results: dict[str, Any]) -> list[Table]:
    clips = of_kind(results, "clip")
    rules = of_kind(results, "rules")
    small = of_kind(results, "small")
    shapes = dict.fromkeys((case["n"], case["d"]) for case in rules)
    by_shape = [_rules_table([case for case in rules if (case["n"], case["d"]) == shape]) for shape in shapes]
    return [_clip_table(clips), *by_shape, _residual_table(rules), _small_table(small)]


def aims(results: dict[str, Any]) -> list[Aim]:
    clips = of_kind(results, "clip")
    shape = (clips[0]["n"], clips[0]["d"])
    reads = [
        in_units(case["seconds"][row["tau"]], case["seconds"]["x.sum()"]) for case in clips for row in case["taus"]
    ]
    medians = [
        in_units(case["seconds"]["coordinate_median"], case["seconds"]["x.sum()"])
        for case in of_kind(results, "rules")
        if (case["n"], case["d"]) == shape
    ]
    where = f"[{shape[0]}, {shape[1]:,}], reads of the memory"
    return [
        Aim(f"CenteredClip to convergence at {where}", 5, max(reads)),
        Aim(f"coordinate-wise median at {where}", 25, max(medians)),
    ]


def _clip_table(found: list[dict[str, Any]]) -> Table:
    rows = []
    for case in found:
        times: Times = case["seconds"]
        textbook = statistics.median(times["textbook iteration"])
        for row in case["taus"]:
            mine = times[row["tau"]]
            count = row["textbook iterations"]
            rows.append(
                [
                    f"{case['rows']}, {row['tau']}",
                    ratio(mine, times["x.sum()"]),
                    f"{row['checked in float64']:.1e}",
                    str(row["iterations"]),
                    f"{STEPS * textbook / statistics.median(mine):.1f}",
                    f"{row[f'textbook residual after {STEPS}']:.1e}",
                    f"{count:.3g}" + (" (extrapolated)" if row["extrapolated"] else ""),
                    f"{count * textbook / statistics.median(mine):.3g}",
                ]
            )
    n, d = found[0]["n"], found[0]["d"]
    steps = f"{STEPS} textbook steps"
    columns = ["rows, tau", "x.sum()", "residual", "iterations on n x n", f"{steps} / this", f"residual after {steps}"]
    columns += ["textbook steps to convergence", "their time / this"]
    return Table(
        f"CenteredClip to convergence at [{n}, {d:,}]",
        columns,
        rows,
        "In units of one read of the memory, `x.sum()`. `residual`: of equation (CC) at the result, in float64. One "
        "textbook step is timed on the data; how many are needed for the same residual (at least 1e-7) is counted in "
        "Gram space, where the iterates have the same coefficients; beyond the limit it follows from the rate.",
    )


def _rules_table(found: list[dict[str, Any]]) -> Table:
    """The rules on the inputs of one shape."""
    n, d, b = (found[0][key] for key in ("n", "d", "byzantine"))
    names = dict.fromkeys(name for case in found for key in ("seconds", "projected", "skipped") for name in case[key])
    rows = [[name, *(_cell(case, name) for case in found)] for name in sorted(names, key=_ours_first)]
    return Table(
        f"Every rule at [{n}, {d:,}], in reads of the memory",
        ["rule", *(case["rows"] for case in found)],
        rows,
        f"In units of `x.sum()` on the same input. CenteredClip with tau {TAU:g}; the rules are told of {b} Byzantine "
        "rows. `attack` multiplies seven sixteenths of the rows by -1000. The others' CenteredClip makes "
        f"{STEPS} steps, ours goes to convergence; byzfl's geometric median makes 3 steps, byzpy's at most 256. What "
        "takes long is repeated less often; `projected` is the time of a sixteenth of the columns, times 16.",
    )


def _ours_first(name: str) -> int:
    return next((i for i, other in enumerate(OTHERS, 1) if name.startswith(f"{other} ") or name == other), 0)


def _cell(case: dict[str, Any], name: str) -> str:
    if name == "x.sum()":
        return f"{1e3 * statistics.median(case['seconds'][name]):.2f} ms"
    if name in case["seconds"]:
        return ratio(case["seconds"][name], case["seconds"]["x.sum()"])
    if name in case["projected"]:
        reads = case["projected"][name] / statistics.median(case["seconds"]["x.sum()"])
        return f"about {reads:.0f} (projected)"
    return case["skipped"].get(name, "-")


def _residual_table(found: list[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for case in found for name in case["residuals"]))
    labels = {"centered_clip": "centered_clip (to convergence)"}
    rows = [[labels.get(name, f"{name}, {STEPS} steps"), *(_residual(case, name) for case in found)] for name in names]
    return Table(
        "How far each CenteredClip is from its fixed point",
        ["implementation", *(f"[{case['n']}, {case['d']:,}] {case['rows']}" for case in found)],
        rows,
        "Residual of equation (CC), relative to n min(tau, median distance): where all rows are beyond tau, 1 says "
        "that all of them pull one way. The starts differ: the textbook's is the mean of the shorter half of the rows, "
        "byzfl's is zero, byzpy's the mean of all.",
    )


def _residual(case: dict[str, Any], name: str) -> str:
    return f"{case['residuals'][name]:.1e}" if name in case["residuals"] else "-"


def _small_table(found: list[dict[str, Any]]) -> Table:
    def cell(times: list[float]) -> str:
        return " ".join(
            f"{1e3 * value:.3f}{mark}"
            for value, mark in ((statistics.median(times), ""), (min(times), " (min)"), (max(times), " (max)"))
        )

    names = list(found[0]["seconds"])
    return Table(
        "Small calls, milliseconds",
        ["rule", *(f"[{case['n']}, {case['d']:,}]" for case in found)],
        [[name, *(cell(case["seconds"][name]) for case in found)] for name in names],
        f"Seven sixteenths of the rows attack; tau {TAU:g}, b = {found[0]['byzantine']}.",
    )
