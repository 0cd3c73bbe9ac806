"""Each phase of a BTARD step as a share of the gradient's time, against plain all-reduce: the overhead table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from btard.drivers.local import LocalDriver
from btard.protocol.config import ProtocolConfig
from btard.protocol.memory import Memory
from btard.task import Task
from scripts.benchmarks.measure import Settings, in_units, interleaved, ratio, release, timed
from scripts.benchmarks.page import Aim, Table, of_kind
from scripts.benchmarks.workloads import (
    BATCH,
    PEERS,
    PreparedTask,
    albert,
    gradient_variants,
    resnet_task,
)

BYZANTINE = 7
WAYS = {"in one process": True, "each peer on its own": False}
"""Whether results that several peers share are remembered."""
SHARES = {"in one process": 15, "each peer on its own": 30}
"""The aims: percent of the gradients' time."""
CPU_CASES: tuple[tuple[Literal["hashed", "ideal"], int, float], ...] = (
    ("hashed", 1_000, 18),
    ("hashed", 44_550, 20),
    ("hashed", 701_466, 45),
    ("ideal", 1_000, 15),
)
"""Commitments, parameters (a small model, the digits' network, ResNet-18 of width 16), and the aim in ms."""
CPU_REPEATS = 20
GRADIENT_CASES = ((16, 32), (64, 32), (8, 32), (16, 16), (8, 16), (8, 8))
"""Width of the network and side of the images."""


def cases(settings: Settings) -> dict[str, Callable[[], Any]]:
    if settings.quick:
        return {
            "resnet 4": partial(resnet_case, 4, 8, 1, settings),
            "albert": partial(albert_case, 1, settings),
            "cpu 1000 hashed": partial(cpu_case, "hashed", 1_000, 18, 1),
            "gradients 4 8": partial(gradients_case, 4, 8, 0.0, settings),
        }
    found: dict[str, Callable[[], Any]] = {
        "resnet 64": partial(resnet_case, 64, 32, 3, settings),
        "resnet 16": partial(resnet_case, 16, 32, 8, settings),
    }
    found["albert"] = partial(albert_case, 3, settings)
    for commitments, d, aim in CPU_CASES:
        found[f"cpu {d} {commitments}"] = partial(cpu_case, commitments, d, aim, CPU_REPEATS)
    return found | {f"gradients {w} {s}": partial(gradients_case, w, s, 10.0, settings) for w, s in GRADIENT_CASES}


def all_reduce(rows: Tensor) -> Tensor:
    """The arithmetic of butterfly all-reduce on rows [n, d]: peer j takes the mean of part j, all parts are joined."""
    return torch.cat([part.mean(dim=0) for part in rows.tensor_split(len(rows), dim=1)])


def steps_of(task: Task, params: Tensor, repeats: int, rows: Tensor, settings: Settings) -> dict[str, Any]:
    """Seconds by phase of steps with and without remembering, and of all-reduce on `rows` [n, d], in turns."""
    drivers = {
        way: LocalDriver(
            ProtocolConfig(peers=PEERS, byzantine=BYZANTINE, run_id=f"benchmark {way}"),
            task,
            memory=Memory(remembers=remembers),
        )
        for way, remembers in WAYS.items()
    }
    phases: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    reduce: list[float] = []
    for repeat in range(repeats + 2):  # nobody validates in the first step, and the second warms that up
        for way, driver in drivers.items():
            result, spent = timed(partial(driver.step, params), settings.device)
            if repeat >= 2:
                outside = spent - sum(result.seconds.values())
                phases[way].append({**result.seconds, "handing over the result": outside})
        _, spent = timed(partial(all_reduce, rows), settings.device)
        if repeat >= 2:
            reduce.append(spent)
    sent = list(result.sent.values())
    return {
        "d": task.d,
        "phases": phases,
        "all_reduce": reduce,
        "sent": {"mean": statistics.mean(sent), "largest": max(sent)},
        "all_reduce_sent": 8 * task.d * (PEERS - 1) / PEERS,
    }


def resnet_case(width: int, size: int, repeats: int, settings: Settings) -> dict[str, Any]:
    """Steps with real gradients of ResNet-18."""
    release(settings.device)
    task, params = resnet_task(width, size, settings.device)
    rows = torch.randn(PEERS, task.d, device=settings.device)
    return {"model": f"ResNet-18 of width {width}", **steps_of(task, params, repeats, rows, settings)}


def albert_case(repeats: int, settings: Settings) -> dict[str, Any]:
    """Steps with prepared gradients of ALBERT-large's size, and the time of one real gradient of one peer."""
    release(settings.device)
    try:
        if settings.quick:
            small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
            d, gradient = albert(settings.device, 16, **small, vocab_size=100, embedding_size=8)
        else:
            d, gradient = albert(settings.device, 512)
    except ImportError:
        return {"skipped": "the package transformers is not installed"}
    times = interleaved({"gradient": gradient}, max(2, repeats), settings.device)["gradient"]
    del gradient
    release(settings.device)
    task = PreparedTask(d, PEERS, settings.device)
    params = torch.zeros(d, device=settings.device)
    return {"model": "ALBERT-large", "gradient": times, **steps_of(task, params, repeats, task.rows, settings)}


def cpu_case(commitments: Literal["hashed", "ideal"], d: int, aim: float, repeats: int) -> dict[str, Any]:
    """CPU seconds of steps in one process and on one thread, with prepared gradients: the protocol alone."""
    config = ProtocolConfig(peers=PEERS, byzantine=BYZANTINE, run_id="benchmark cpu")
    driver = LocalDriver(config, PreparedTask(d, PEERS), commitments=commitments)
    params, seconds, threads = torch.zeros(d), [], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(repeats + 2):  # nobody validates in the first step, and the second warms that up
            started = time.process_time()
            driver.step(params)
            seconds.append(time.process_time() - started)
    finally:
        torch.set_num_threads(threads)
    return {"commitments": commitments, "d": d, "aim": aim, "seconds": seconds[2:]}


def gradients_case(width: int, size: int, seconds: float, settings: Settings) -> dict[str, Any]:
    """Ways to per-peer gradients beside the plain step, as many rounds as fit in `seconds`, from two to thirty."""
    release(settings.device)
    variants = gradient_variants(width, size, settings.device)
    trial = sum(times[0] for times in interleaved(variants, 1, settings.device).values())
    repeats = min(30, max(2, int(seconds / trial)))
    return {"width": width, "size": size, "seconds": interleaved(variants, repeats, settings.device, warmup=0)}


def tables(results: dict[str, Any]) -> list[Table]:
    steps = [case for case in results.values() if "phases" in case]
    skipped = [f"ALBERT-large: {case['skipped']}." for case in results.values() if "skipped" in case]
    ways = _gradients_table(of_kind(results, "gradients"))
    cpu = [_cpu_table(found)] if (found := of_kind(results, "cpu")) else []
    return [_overhead_table(steps, skipped), *cpu, *map(_phases_table, steps), _traffic_table(steps), ways]


def aims(results: dict[str, Any]) -> list[Aim]:
    case = next(case for case in results.values() if "phases" in case)
    shares = [
        Aim(
            f"protocol without the gradients, % of their time, {case['model']}, {way}",
            SHARES[way],
            100 * in_units(protocol_times(case, way), gradient_times(case, way)),
        )
        for way in WAYS
    ]
    cpu = of_kind(results, "cpu")
    return [
        *shares,
        *(Aim(f"CPU of the protocol in a step, ms, {_sizes(c)}", c["aim"], _ms(c["seconds"])) for c in cpu),
    ]


def _sizes(case: dict[str, Any]) -> str:
    return f"{case['d']:,} parameters, {case['commitments']} commitments"


def _ms(seconds: Sequence[float]) -> float:
    return 1e3 * statistics.median(seconds)


def gradient_times(case: dict[str, Any], way: str) -> list[float]:
    """Seconds that all peers' gradients take in a step: as measured there, or one of ALBERT's times the peers."""
    if "gradient" in case:
        return [PEERS * seconds for seconds in case["gradient"]]
    return [phases["gradients"] for phases in case["phases"][way]]


def protocol_times(case: dict[str, Any], way: str) -> list[float]:
    """Seconds of a step without the gradients."""
    return [sum(s for phase, s in phases.items() if phase != "gradients") for phases in case["phases"][way]]


def _percent(times: list[float], unit: list[float]) -> str:
    return ratio([100 * seconds for seconds in times], unit)


def _overhead_table(steps: list[dict[str, Any]], skipped: list[str]) -> Table:
    rows = []
    for case in steps:
        for way in WAYS:
            gradients = gradient_times(case, way)
            rows.append(
                [
                    f"{case['model']}, {way}",
                    f"{case['d']:,}",
                    f"{statistics.median(gradients):.3f}",
                    _percent(protocol_times(case, way), gradients),
                    _percent(case["all_reduce"], gradients),
                ]
            )
    return Table(
        "What a step costs beside the gradients",
        ["model", "parameters", "gradients, s", "protocol without gradients, %", "plain all-reduce, arithmetic, %"],
        rows,
        f"{PEERS} peers, {BYZANTINE} of whom may be Byzantine and none attacks, one validator; {BATCH} images of "
        "32 x 32 per peer for ResNet-18. Shares of the time of the gradients. For ResNet-18 these are those of the 15 "
        "workers in the same steps; for ALBERT-large one peer's gradient of one sequence of 512 tokens is measured, "
        f"times {PEERS}, and the protocol runs on prepared random rows, on whose values its time does not depend. `in "
        "one process`: pure functions that several peers evaluate, such as checks of signatures, are remembered. "
        "`each peer on its own`: nothing is remembered, as on a machine for each peer. Plain all-reduce: the mean by "
        "parts of the same rows, without its network. " + " ".join(skipped),
    )


def _cpu_table(found: Sequence[dict[str, Any]]) -> Table:
    return Table(
        "CPU of the protocol in a step, ms",
        ["parameters, commitments", "median", "least", "most"],
        [
            [_sizes(case), *(f"{1e3 * pick(case['seconds']):.1f}" for pick in (statistics.median, min, max))]
            for case in found
        ],
        f"{PEERS} peers in one process, on one thread; gradients are prepared. The row of ideal commitments at the "
        "smallest size is nearly all Python: a GPU waits for that in each step, whatever it computes.",
    )


def _phases_table(case: dict[str, Any]) -> Table:
    names = list(dict.fromkeys(phase for way in WAYS for step in case["phases"][way] for phase in step))
    rows = []
    for phase in names:
        if phase != "gradients":
            spent = {way: [step.get(phase, 0.0) for step in case["phases"][way]] for way in WAYS}
            rows.append([phase, *(_percent(spent[way], gradient_times(case, way)) for way in WAYS)])
    total = [_percent(protocol_times(case, way), gradient_times(case, way)) for way in WAYS]
    return Table(
        f"{case['model']}: the phases, as shares of the gradients' time",
        ["phase", *(f"{way}, %" for way in WAYS)],
        [*rows, ["all", *total]],
        "What a phase does in peers and driver to get there: `aggregate` holds CenteredClip of the parts, `announce` "
        "and `coin_commit` what is agreed on them afterwards.",
    )


def _traffic_table(steps: list[dict[str, Any]]) -> Table:
    rows = []
    for case in steps:
        plain, sent = case["all_reduce_sent"], case["sent"]
        rows.append(
            [
                case["model"],
                f"{plain / 1e6:.3f}",
                *(f"{sent[who] / 1e6:.3f} ({sent[who] / plain:.4f})" for who in ("mean", "largest")),
            ]
        )
    return Table(
        "Bytes sent per peer and step, MB",
        ["model", "plain all-reduce", "protocol, mean of the peers", "protocol, the most of a peer"],
        rows,
        "In parentheses against plain butterfly all-reduce, which sends 2 (n - 1)/n times the vector.",
    )


def _gradients_table(found: list[dict[str, Any]]) -> Table:
    names = list(found[0]["seconds"])[1:]
    rows = [
        [
            f"width {case['width']}, {case['size']} x {case['size']}",
            f"{statistics.median(case['seconds']['plain']):.3f}",
            *(ratio(case["seconds"][name], case["seconds"]["plain"], 2) for name in names),
        ]
        for case in found
    ]
    return Table(
        "Ways to the gradients of all peers, against one plain step on the same samples",
        ["ResNet-18, images", "plain, s", *names],
        rows,
        f"{PEERS} x {BATCH} samples. `plain`: one forward and backward with batch normalisation over all and one "
        "gradient, in torch's default memory format; `channels_last` is the format that this repository trains in. The "
        "others give a gradient per peer: in a plain loop, a peer per thread, folded into one pass.",
    )
