"""Steps of the local driver against a plain step, byzfl's loop and one process per peer; the latter against DDP."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from btard.drivers.local import LocalDriver
from btard.harness.run_folder import read_summary, read_timings
from btard.protocol.config import ProtocolConfig
from scripts.benchmarks.libraries import rules_of
from scripts.benchmarks.measure import Settings, in_units, interleaved, output_of, ratio, release
from scripts.benchmarks.page import Aim, Table, of_kind
from scripts.benchmarks.workloads import BATCH, PEERS, PLAIN, gradient_variants, library_step, resnet_task

MINUTES = 5
"""A program that takes longer is stopped."""
RULES = ("mean", "trimmed_mean", "centered_clip")
"""Rules of byzfl that train beside ours."""


def cases(settings: Settings) -> dict[str, Callable[[], Any]]:
    if settings.quick:
        return {
            "width 4 tau 1": partial(plain_case, 4, 8, 1.0, 1, settings),
            "processes 0": partial(processes_case, 2, 0, 2, 1, settings),
            "ddp 4": partial(ddp_case, 3, 4, 8, 1),
        }
    return {
        "width 16 tau 1": partial(plain_case, 16, 32, 1.0, 12, settings),
        "byzfl 16": partial(byzfl_case, 16, 32, 8, settings),
        "width 16 tau 10": partial(plain_case, 16, 32, 10.0, 12, settings),
        "width 64 tau 1": partial(plain_case, 64, 32, 1.0, 3, settings),
        "processes 0": partial(processes_case, PEERS, 0, 12, 2, settings),
        "processes 7": partial(processes_case, PEERS, 7, 12, 1, settings),
        "ddp 4": partial(ddp_case, 4, 4, 8, 60),
        "ddp 16": partial(ddp_case, 4, 16, 32, 20),
    }


def plain_case(width: int, size: int, tau: float, repeats: int, settings: Settings) -> dict[str, Any]:
    """A whole step of the cohort and the plain step on as many samples, in turns."""
    release(settings.device)
    d, step = _whole_step(width, size, tau, settings)
    plain = {name: run for name, run in gradient_variants(width, size, settings.device).items() if name in PLAIN}
    # Nobody validates in the first step.
    times = interleaved({**plain, "btard": step}, repeats, settings.device, warmup=2)
    return {"width": width, "size": size, "tau": tau, "d": d, "seconds": times}


def _whole_step(width: int, size: int, tau: float, settings: Settings) -> tuple[int, Callable[[], object]]:
    """The number of parameters, and a step of the cohort that moves them."""
    task, params = resnet_task(width, size, settings.device)
    driver = LocalDriver(ProtocolConfig(peers=PEERS, byzantine=7, tau=tau, run_id="benchmark"), task)
    return task.d, lambda: params.sub_(driver.step(params).gradient, alpha=0.001)


def byzfl_case(width: int, size: int, repeats: int, settings: Settings) -> dict[str, Any]:
    """A whole step of the cohort and steps of byzfl, in turns; why not, where it is not installed."""
    release(settings.device)
    rules = rules_of("byzfl", byzantine=7, tau=1.0)
    if isinstance(rules, str):
        return {"skipped": rules}
    theirs = {f"byzfl {rule}": library_step(width, size, settings.device, rules[rule]) for rule in RULES}
    d, step = _whole_step(width, size, 1.0, settings)
    times = interleaved({**theirs, "btard": step}, repeats, settings.device, warmup=2)
    return {"width": width, "size": size, "d": d, "seconds": times}


def ddp_case(peers: int, width: int, side: int, repeats: int) -> dict[str, Any]:
    """Steps of `scripts.benchmarks.ranks`, a process per peer."""
    words = json.dumps({"width": width, "side": side, "repeats": repeats})
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={peers}"]
    found: dict[str, Any] = json.loads(output_of([*launch, "-m", "scripts.benchmarks.ranks", words], minutes=MINUTES))
    return {"width": width, "side": side, **found}


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
    """Run `python WORDS`; the summary that it leaves in `out`, and the seconds of its steps. Errors: RuntimeError."""
    output_of(words, minutes=MINUTES)
    summary = read_summary(out)
    if summary is None:
        raise RuntimeError(f"{' '.join(words)} left no summary")
    return summary, [sum(spent for phase, spent in line.items() if phase != "step") for line in read_timings(out)]


def tables(results: dict[str, Any]) -> list[Table]:
    plain, processes = of_kind(results, "width"), of_kind(results, "processes")
    byzfl, ddp = of_kind(results, "byzfl"), of_kind(results, "ddp")
    found = [_plain_table(plain), *map(_byzfl_table, byzfl), _processes_table(processes)]
    return [*found, _ddp_table(ddp)] if ddp else found


def aims(results: dict[str, Any]) -> list[Aim]:
    plain, processes = of_kind(results, "width"), of_kind(results, "processes")
    narrow = [case for case in plain if case["width"] == min(other["width"] for other in plain)]
    against = [in_units(case["seconds"]["btard"], case["seconds"]["plain channels_last"]) for case in narrow]
    faster = [in_units(*(c["steps_per_second"][n] for n in ("one process", "a process per peer"))) for c in processes]
    found = [
        Aim(
            f"BTARD step / plain step in channels_last on the same samples, width {narrow[0]['width']}",
            1.25,
            max(against),
        ),
        Aim(f"steps/s in one process / in {processes[0]['peers']} processes, digits", 10, min(faster), least=True),
    ]
    for case in of_kind(results, "byzfl"):
        seconds = case["seconds"]
        clip, mean = (in_units(seconds[f"byzfl {rule}"], seconds["btard"]) for rule in ("centered_clip", "mean"))
        found.append(Aim(f"byzfl's step with CenteredClip / BTARD step, width {case['width']}", 6, clip, least=True))
        found.append(Aim(f"BTARD step / byzfl's step with the mean, width {case['width']}", 1, 1 / mean))
    ddp = [in_units(case["seconds"]["btard"], case["seconds"]["ddp"]) for case in of_kind(results, "ddp")]
    return [*found, Aim("BTARD step / DDP step, a process per peer", 2, max(ddp))] if ddp else found


def _byzfl_table(case: dict[str, Any]) -> Table:
    times = case["seconds"]
    rows = [[name, f"{statistics.median(times[name]):.3f}", ratio(times[name], times["btard"], 2)] for name in times]
    return Table(
        f"A step of byzfl and a whole BTARD step, ResNet-18 of width {case['width']}",
        ["step", "seconds", "/ BTARD"],
        rows,
        f"{PEERS} peers x {BATCH} samples. byzfl's rules run in our loop, which takes one worker after the other as "
        "byzfl's own does, in torch's default memory format; CenteredClip makes 20 steps. There is a trusted server, "
        "and nobody is checked or banned.",
    )


def _ddp_table(found: list[dict[str, Any]]) -> Table:
    rows = []
    for case in found:
        times = case["seconds"]
        words = f"{case['peers']} processes, width {case['width']}, {case['d']:,} parameters"
        milliseconds = (f"{1000 * statistics.median(times[name]):.1f}" for name in ("ddp", "btard"))
        rows.append([words, *milliseconds, ratio(times["btard"], times["ddp"], 2)])
    return Table(
        "A process for each peer, beside torch's DistributedDataParallel",
        ["ResNet-18", "DDP, ms", "BTARD, ms", "BTARD / DDP"],
        rows,
        f"The same processes make both steps in turns, over gloo, one thread each, {BATCH} samples per process. DDP "
        "averages whatever it gets; BTARD validates, and its validators' gradients are computed again.",
    )


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
