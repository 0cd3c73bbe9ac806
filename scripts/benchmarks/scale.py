"""Time, bytes and memory of a step over the number of peers and of parameters, against the promised O(d + n^2)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from scripts.benchmarks.measure import Settings, fit, output_of, ratio, release, slope
from scripts.benchmarks.one_case import result_of
from scripts.benchmarks.page import Aim, Table, of_kind
from scripts.benchmarks.workloads import PEERS

PEER_COUNTS: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
ON_ITS_OWN = 64
"""Number of peers up to which steps without remembering and steps with relays are measured, as these are slow."""
SIZES: tuple[int, ...] = (10_000, 31_600, 100_000, 316_000, 1_000_000, 3_160_000, 10_000_000)
PER_PEER = 64
"""Parameters per peer if the number of peers grows: so few that terms other than O(d) dominate."""
WIDTHS: tuple[int, ...] = (16, 64)
SLACK = 1.4
"""The target for the driver's memory: at most the gradients [n, d] plus one model's training memory, times this."""


def cases(settings: Settings) -> dict[str, Callable[[], Any]]:
    counts, sizes, widths = PEER_COUNTS, SIZES, WIDTHS
    if settings.quick:
        counts, sizes, widths = (4, 8), (1_000, 4_000), (4,)

    def task(**case: Any) -> Callable[[], Any]:
        # Starting processes takes longer than all else of a quick run: there only one case has its own.
        here = settings.quick and case["kind"] != "driver memory"
        return partial(result_of if here else in_process_of_its_own, {"device": settings.device, **case})

    found = {}
    for n in counts:
        found[f"peers {n}"] = task(kind="step", n=n, d=PER_PEER * n, steps=3 if n > 100 else 4)
        if n <= (4 if settings.quick else ON_ITS_OWN):
            found[f"own {n}"] = task(kind="step", n=n, d=PER_PEER * n, steps=3, own=True)
            found[f"relays {n}"] = task(kind="step", n=n, d=PER_PEER * n, steps=3, byzantine=(n - 2) // 2)
    for d in sizes:
        found[f"size {d}"] = task(kind="step", n=4 if settings.quick else PEERS, d=d, steps=5 if d < 3_000_000 else 3)
    for width in widths:
        for kind in ("training memory", "driver memory"):
            found[f"{kind} {width}"] = task(kind=kind, width=width, side=8 if settings.quick else 32)
    return found


def in_process_of_its_own(case: dict[str, Any]) -> dict[str, Any]:
    """The result of `scripts.benchmarks.one_case` for `case`, whose memory is then that of this case alone.

    Errors: RuntimeError with what the process said last.
    """
    release(case["device"])
    return json.loads(output_of(["-m", "scripts.benchmarks.one_case", json.dumps(case)]))


def tables(results: dict[str, Any]) -> list[Table]:
    peers, own, relays, size = (of_kind(results, kind) for kind in ("peers", "own", "relays", "size"))
    return [
        _peers_table(peers, own, relays),
        _size_table(size),
        _growth_table(peers, own, relays, size),
        _memory_table(of_kind(results, "training memory"), of_kind(results, "driver memory")),
    ]


def aims(results: dict[str, Any]) -> list[Aim]:
    pairs = zip(of_kind(results, "training memory"), of_kind(results, "driver memory"), strict=True)
    return [
        Aim(
            f"driver's memory / ([n, d] and one model's training), width {cohort['width']}",
            SLACK,
            cohort["memory"] / allowance(plain, cohort),
        )
        for plain, cohort in pairs
    ]


def allowance(plain: dict[str, Any], cohort: dict[str, Any]) -> float:
    """Bytes of the gradients [n, d] in float32 and of training one model."""
    return 4 * cohort["n"] * cohort["d"] + plain["memory"]


def per_peer(case: dict[str, Any]) -> float:
    """Seconds of a step for each peer."""
    return statistics.median(case["seconds"]) / case["n"]


def _ms(case: dict[str, Any] | None) -> str:
    """Milliseconds of a step for each peer."""
    return "-" if case is None else ratio(case["seconds"], [case["n"] / 1e3], 2)


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f}"


def _peers_table(alone: list[dict[str, Any]], own: list[dict[str, Any]], relays: list[dict[str, Any]]) -> Table:
    slow, relayed = {case["n"]: case for case in own}, {case["n"]: case for case in relays}
    rows = [
        [
            str(case["n"]),
            _ms(case),
            _ms(slow.get(case["n"])),
            _ms(relayed.get(case["n"])),
            f"{case['remainder']:,.0f}",
            f"{relayed[case['n']]['remainder']:,.0f}" if case["n"] in relayed else "-",
            _mb(case["memory"]),
        ]
        for case in alone
    ]
    columns = ["peers", "ms per peer", "on its own", "with relays", "bytes", "bytes with relays", "memory, MB"]
    return Table(
        "A step over the number of peers",
        columns,
        rows,
        f"{PER_PEER} parameters per peer, gradients that cost nothing. Time of a step of the local driver over the "
        "number of peers. `on its own`: nothing that another peer has worked out is remembered. `with relays`: rounds "
        "of relays for the most Byzantine peers. Bytes that a peer sends beside parts and aggregates. Memory: peak of "
        "the process beyond its imports.",
    )


def _size_table(found: list[dict[str, Any]]) -> Table:
    rows = [
        [
            f"{case['d']:,}",
            _ms(case),
            f"{per_peer(case) / case['d'] * 1e9:.1f}",
            _mb(case["sent"]),
            f"{case['sent'] / (8 * case['d'] * (case['n'] - 1) / case['n']):.4f}",
            _mb(case["memory"]),
            f"{case['memory'] / (4 * case['n'] * case['d']):.2f}",
        ]
        for case in found
    ]
    return Table(
        f"A step over the number of parameters, {found[0]['n']} peers",
        ["parameters", "ms per peer", "ns per parameter", "MB sent", "against all-reduce", "memory, MB", "in [n, d]"],
        rows,
        "Gradients that cost a copy. Bytes are the mean over the peers, against plain butterfly all-reduce. Memory: "
        "peak of the process beyond its imports, and in units of one float32 matrix [n, d]; one such matrix of it are "
        "the prepared gradients that stand in for a model.",
    )


def growth(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds per peer fitted as c0 + c1 d + c2 n^2."""
    basis = {
        "c0": [1.0] * len(cases),
        "c1": [float(case["d"]) for case in cases],
        "c2": [float(case["n"] ** 2) for case in cases],
    }
    return fit(basis, [per_peer(case) for case in cases])


def _growth_table(
    alone: list[dict[str, Any]], own: list[dict[str, Any]], relays: list[dict[str, Any]], size: list[dict[str, Any]]
) -> Table:
    rows = []
    quantities: list[tuple[str, str, list[dict[str, Any]], Callable[[dict[str, Any]], float], str]] = [
        ("time per peer", "n", alone, per_peer, "2"),
        ("time per peer, each on its own", "n", own, per_peer, "2"),
        ("time per peer, with relays", "n", relays, per_peer, "2"),
        ("bytes beside the tensors", "n", alone, lambda case: case["remainder"], "2"),
        ("bytes beside the tensors, with relays", "n", relays, lambda case: case["remainder"], "2"),
        ("time per peer", "d", size, per_peer, "1"),
        ("bytes", "d", size, lambda case: case["sent"], "1"),
        ("memory", "d", size, lambda case: case["memory"], "1"),
    ]
    for name, over, found, value, promised in quantities:
        sizes, values = [case[over] for case in found], [value(case) for case in found]
        if len(found) >= 2 and min(values) > 0:
            rows.append([f"{name}, over {over}", f"{slope(sizes, values):.2f}", promised])
    fitted = growth([*alone, *size])
    c = fitted["coefficients"]
    return Table(
        "Exponents of growth, against O(d + n^2) per peer",
        ["quantity", "exponent", "promised, at most"],
        rows,
        "Slopes of the logarithms in the upper half of the sizes. Fitted to all steps in one process without relays, "
        f"seconds per peer are {c['c0']:.2e} + {c['c1']:.2e} d + {c['c2']:.2e} n^2; the largest relative error of the "
        f"fit is {fitted['largest error']:.0%}.",
    )


def _memory_table(training: list[dict[str, Any]], driver: list[dict[str, Any]]) -> Table:
    rows = []
    for plain, cohort in zip(training, driver, strict=True):
        rows.append(
            [
                f"ResNet-18 of width {cohort['width']}",
                _mb(4 * cohort["n"] * cohort["d"]),
                _mb(plain["memory"]),
                _mb(cohort["memory"]),
                f"{cohort['memory'] / allowance(plain, cohort):.2f}",
            ]
        )
    return Table(
        "Memory of the local driver, MB",
        ["model", "gradients [n, d]", "training one model on 8 samples", "local driver", "driver / sum of both"],
        rows,
        f"{PEERS} peers; peaks beyond the imports, each in a process of its own. The aim in the last column is at most "
        f"{SLACK}.",
    )
