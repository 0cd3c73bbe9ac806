"""How far apart honest peers' gradients are if they compute differently, and which tolerances follow from that."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from btard.calibration import Proposal, propose
from btard.harness.figures import BLUE, VERMILION, bare, new_figure
from btard.harness.progress import track
from btard.harness.tables import table
from btard.protocol.effects import Compute
from btard.protocol.hashing import batch_seed, digest
from btard.protocol.tolerance import difference, tolerated_deviation
from btard.training.optimizer import VectorOptimizer
from resnet.cohort import make_model, make_task
from resnet.config import Config
from resnet.data import Dataset
from resnet.numerics import Numerics, NumericTask
from resnet.optimizer import sgd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORY = 2**30
"""Number of bytes that the gradients compared at a time may take."""
PATIENCE = 2.0
"""Seconds after which a progress bar appears."""
WEAK = 0.25
"""At this tolerance the unnoticed deviation is as large as the gradient."""
FLOOR = 1e-9
"""The place of errors of 0 on the figure's logarithmic axis; rounding of float32 is far above."""


@dataclass
class Pair:
    """Differences between two ways of computing, over all samples."""

    one: Numerics
    other: Numerics
    relative: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.one.name} / {self.other.name}"


@dataclass(frozen=True)
class Mix:
    """A class of machines that train together, and the tolerance for them; None if this machine cannot measure it."""

    name: str
    pairs: tuple[Pair, ...]
    proposal: Proposal | None
    cosine_tol: float | None

    @property
    def yaml(self) -> str:
        """The lines for a configuration."""
        if self.proposal is None:
            return ""
        lines = [
            f"# {self.name}: the worst of {len(self.pairs)} pairs on {self.proposal.samples} batches",
            "protocol:",
        ]
        if self.proposal.tolerance == 0:
            return "\n".join([*lines, "  validation: exact  # all gradients were equal to the bit"])
        if self.proposal.tolerance > WEAK:
            lines.insert(
                1, "# far apart: a peer may shrink or double its gradient unseen; only gross attacks are caught"
            )
        return "\n".join([*lines, "  validation: tolerant", f"  gradient_tol: {self.proposal.tolerance:g}"])


def measure(
    config: Config, data: Dataset, numerics: Sequence[Numerics], *, steps: int, samples: int, points: int
) -> list[Pair]:
    """Train `steps` steps without attackers and compare `samples` public batches at each of `points` steps of them.

    The first point is the initial model. Every batch is computed by all `numerics` and compared in all pairs.
    """
    pairs = [Pair(one, other) for one, other in combinations(numerics, 2)]
    model = make_model(config, data)
    tasks = {way: NumericTask(model, data, config.batch_size, way) for way in numerics}
    at = sorted({round(i * steps / max(1, points - 1)) for i in range(points)})
    chunk = max(1, min(8, samples, MEMORY // (4 * tasks[numerics[0]].d * len(numerics))))
    for step, params in _training(config, data, model, steps):
        if step not in at:
            continue
        for first in track(range(0, samples, chunk), f"step {step}", unit="batches", patience=PATIENCE):
            requests = [_request(config, "calibration", step, i) for i in range(first, min(samples, first + chunk))]
            rows = {way: torch.empty(len(requests), task.d) for way, task in tasks.items()}
            for way, task in tasks.items():
                task.gradients(params, requests, rows[way])
            for pair in pairs:
                for a, b in zip(rows[pair.one], rows[pair.other], strict=True):
                    apart = difference(a, b)
                    pair.relative.append(apart.relative)
                    pair.cosine.append(apart.cosine)
    return pairs


def _training(config: Config, data: Dataset, model: torch.nn.Module, steps: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (step, parameters [d]) from 0 to `steps`: all peers' mean gradient, the configuration's optimizer."""
    device = torch.device("cpu" if config.device == "cpu" or not torch.cuda.is_available() else "cuda")
    trained = make_model(config, data).to(device)
    task = make_task(replace(config, mode="batched"), data, trained)
    optimizer = VectorOptimizer(trained, sgd(config.optimizer))
    peers, params = range(config.peers), optimizer.params
    rows = torch.empty(config.peers, task.d, device=device)
    for step in range(steps + 1):
        yield step, params.cpu()
        task.gradients(params, [_request(config, "training", step, peer) for peer in peers], rows)
        optimizer.apply(rows.mean(0), step)


def _request(config: Config, run: str, step: int, index: int) -> Compute:
    return Compute(step, index, batch_seed(run, step, index, digest("calibration", config.seed)))


def mixes(pairs: Sequence[Pair], validations: int, rounding: float = 0.0) -> list[Mix]:
    """The classes of machines, each with the pairs that may meet in it. `rounding`: as for `propose`."""

    def both(pair: Pair, *, devices: set[str], precisions: set[str]) -> bool:
        return {pair.one.device, pair.other.device} <= devices and {
            pair.one.precision,
            pair.other.precision,
        } <= precisions

    classes: list[tuple[str, set[str], set[str]]] = [
        ("CPUs in float32", {"cpu"}, {"float32"}),
        ("CPUs in float32 and bfloat16", {"cpu"}, {"float32", "bfloat16"}),
        ("GPUs in float32", {"cuda"}, {"float32"}),
        ("GPUs in float32 and TF32", {"cuda"}, {"float32", "tf32"}),
        ("GPUs in float32, TF32 and bfloat16", {"cuda"}, {"float32", "tf32", "bfloat16"}),
        ("CPUs and GPUs in float32", {"cpu", "cuda"}, {"float32"}),
        ("CPUs and GPUs in float32 and TF32", {"cpu", "cuda"}, {"float32", "tf32"}),
    ]
    found = []
    for name, devices, precisions in classes:
        within = tuple(pair for pair in pairs if both(pair, devices=devices, precisions=precisions))
        present = {(way.device, way.precision) for pair in within for way in (pair.one, pair.other)}
        complete = {d for d, _ in present} == devices and {p for _, p in present} == precisions
        if not complete:
            found.append(Mix(name, (), None, None))
            continue
        # The pairs see the same batches, and one flipped ReLU is in all pairs of the peer that has it: so the samples
        # are the batches, each with its worst pair.
        relative = [max(errors) for errors in zip(*(pair.relative for pair in within), strict=True)]
        # 1 - cos is half a squared distance: its tail is fitted, and its margin taken, on the distance.
        chords = [math.sqrt(2 * max(errors)) for errors in zip(*(pair.cosine for pair in within), strict=True)]
        chord = propose(chords, validations, rounding).tolerance
        found.append(Mix(name, within, propose(relative, validations, rounding), chord**2 / 2))
    return found


def tables(pairs: Sequence[Pair], found: Sequence[Mix], missing: dict[str, str]) -> list[Table | str]:
    """What to print: differences by pair, tolerances by mix, what was not measured."""
    by_pair = []
    for pair in pairs:
        errors = sorted(pair.relative)
        n = len(errors)
        shown = [f"{errors[n // 2]:.1e}", f"{errors[min(n - 1, math.ceil(0.95 * n))]:.1e}", f"{errors[-1]:.1e}"]
        equal = sum(error == 0 for error in errors) / n
        by_pair.append([pair.name, str(n), f"{equal:.0%}", *shown, f"{max(pair.cosine):.1e}"])
    by_mix = []
    for mix in found:
        proposal = mix.proposal
        if proposal is None:
            continue
        estimate = proposal.false_accusations_estimate
        row = (
            mix.name,
            "exact" if proposal.tolerance == 0 else f"{proposal.tolerance:g}{' (capped)' * proposal.capped}",
            f"{proposal.largest:.1e}",
            f"{proposal.exceeding} of {proposal.samples}",
            f"{proposal.false_accusations_bound:.2g}, " + ("no tail" if estimate is None else f"{estimate:.1e}"),
            f"{tolerated_deviation(proposal.tolerance):.1%}",
        )
        by_mix.append(row)
    absent = [f"not measured: {name}, {reason}" for name, reason in missing.items()]
    absent += [f"not measured: {mix.name}" for mix in found if mix.proposal is None]
    columns = ("pair", ">samples", ">equal bits", ">median", ">95 %", ">largest", ">largest 1 - cos")
    accused = ">false accusations per run\n95 % bound, and by the tail"
    found_columns = ("machines", ">gradient_tol", ">largest error", ">above 2 tol", accused, ">unseen deviation")
    return [table("Differences", columns, by_pair), table("Tolerances", found_columns, by_mix), *absent]


def draw(pairs: Sequence[Pair], found: Sequence[Mix]) -> Figure:
    """A histogram of log10 error per pair, and the tolerance of the narrowest mix that the pair belongs to."""
    figure = new_figure(7.2, 0.6 + 0.62 * len(pairs))
    axes = figure.subplots(len(pairs), 1, sharex=True, squeeze=False)[:, 0]
    bins = [math.log10(FLOOR) + 0.25 * i for i in range(38)]
    for axis, pair in zip(axes, pairs, strict=True):
        logs = [math.log10(max(error, FLOOR)) for error in pair.relative if error > 0]
        axis.hist(logs, bins=bins, color=BLUE)
        mix = next((mix for mix in found if pair in mix.pairs and mix.proposal and mix.proposal.tolerance), None)
        if mix is not None and mix.proposal is not None:
            axis.axvline(math.log10(mix.proposal.tolerance), color=VERMILION, lw=1.4)
        equal = len(pair.relative) - len(logs)
        text = pair.name + (f"   ({equal} of {len(pair.relative)} equal to the bit)" if equal else "")
        axis.set_title(text, fontsize=8, loc="left", pad=2)
        axis.set_yscale("log")  # one flipped ReLU in hundreds of batches decides
        axis.set_ylim(bottom=0.5)
        axis.yaxis.set_visible(False)
        bare(axis, grid=None)
        axis.spines["left"].set_visible(False)
    axes[-1].set_xlim(bins[0], bins[-1])
    axes[-1].set_xlabel("log10 of the relative error; orange: proposed gradient_tol")
    return figure


def report(config: Config, pairs: Sequence[Pair], found: Sequence[Mix], missing: dict[str, str]) -> dict[str, Any]:
    """The JSON file."""

    def short(values: list[float]) -> list[float]:
        return [float(f"{value:.4g}") for value in values]

    return {
        "config": asdict(config),
        "pairs": {
            pair.name: {"relative": short(pair.relative), "one_minus_cosine": short(pair.cosine)} for pair in pairs
        },
        "mixes": {
            mix.name: asdict(mix.proposal)
            | {
                "cosine_tol": mix.cosine_tol,
                "false_accusations_bound": mix.proposal.false_accusations_bound,
                "false_accusations_estimate": mix.proposal.false_accusations_estimate,
                "tolerated_deviation": tolerated_deviation(mix.proposal.tolerance),
            }
            for mix in found
            if mix.proposal is not None
        },
        "not_measured": missing | {mix.name: "see what is missing" for mix in found if mix.proposal is None},
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "cores": os.cpu_count(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
