"""What is compared: a rule or an attack of ours with one of another package, and the reason if they differ."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor

from btard.aggregation import bucketing, clip_around, nearest_neighbour_mixing, rfa
from scripts.conformance.ours import TAU, Call, attack, krum_with, lower_median, rule, spread

STEPS = 3
"""Number of iterations for those of their clippings that need one."""


@dataclass(frozen=True)
class Pair:
    """`alike` is ours, changed as `why` says; without a reason, ours and theirs must agree unchanged."""

    ours: str
    theirs: str
    compute: Call
    other: Call
    why: str = ""
    alike: Call | None = None


NEIGHBOURS = "sums over n - f - 1 neighbours; Blanchard et al. have n - f - 2"
START = "starts at 0, where ours starts at the mean"
FEW_STEPS = "stops after three steps of smoothed Weiszfeld (nu 0.1) from 0; ours converges. It is RFA by another name"
CLIP_STEPS = f"makes {STEPS} steps from {{}} on; ours goes on to the fixed point"
LITTLE = "adds to the mean where ours subtracts, and divides the variance by h - 1; ours by h"
LITTLE_Z = "adds, and takes the quantile of (n - s) / n; Baruch et al. have (n - b - s) / (n - b)"


def zero(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[1])


def on_matrix(make: Callable[[int], Any]) -> Call:
    """One of their rules, created for `f` Byzantine rows, which takes a matrix."""
    return lambda x, f: make(f)(x)


def of_byzfl() -> Iterator[Pair]:
    byzfl = import_module("byzfl")

    def drawn(x: Tensor, f: int) -> Tensor:
        np.random.seed(f)  # noqa: NPY002 - theirs draws from the global generator
        return torch.from_numpy(byzfl.Bucketing(2)(x.numpy()))

    def same_draw(x: Tensor, f: int) -> Tensor:
        return bucketing(x, np.random.RandomState(f).permutation(len(x)), 2)

    weiszfeld = byzfl.GeometricMedian()
    yield Pair("mean", "Average", rule("mean"), lambda x, f: byzfl.Average()(x))
    yield Pair("coordinate_median", "Median", rule("coordinate_median"), lambda x, f: byzfl.Median()(x))
    yield Pair("trimmed_mean", "TrMean", rule("trimmed_mean"), lambda x, f: byzfl.TrMean(f)(x))
    yield Pair(
        "geometric_median",
        "GeometricMedian",
        rule("geometric_median"),
        lambda x, f: weiszfeld(x),
        FEW_STEPS,
        lambda x, f: rfa(x, nu=0.1, start=zero(x)),
    )
    yield Pair(
        "rfa",
        "GeometricMedian(nu=1e-6)",
        rule("rfa"),
        lambda x, f: byzfl.GeometricMedian(nu=1e-6)(x),
        START,
        lambda x, f: rfa(x, start=zero(x)),
    )
    for name, theirs in (("krum", byzfl.Krum), ("multi_krum", byzfl.MultiKrum)):
        changed = krum_with(fewer=1, power=2, many=name == "multi_krum")
        yield Pair(name, theirs.__name__, rule(name), on_matrix(theirs), NEIGHBOURS, changed)
    yield Pair(
        "centered_clip",
        f"CenteredClipping(L={STEPS})",
        rule("centered_clip"),
        lambda x, f: byzfl.CenteredClipping(L=STEPS, tau=TAU)(x),
        CLIP_STEPS.format("0"),
        lambda x, f: clip_around(x, None, TAU, iterations=STEPS),
    )

    def twice(x: Tensor, f: int) -> Tensor:
        clip = byzfl.CenteredClipping(L=1, tau=TAU)
        clip(x)
        return clip(2 * x)

    yield Pair(
        "clip_around_last",
        "CenteredClipping, called twice",
        lambda x, f: clip_around(2 * x, clip_around(x, None, TAU), TAU),
        twice,
    )
    yield Pair(
        "nnm", "NNM", lambda x, f: nearest_neighbour_mixing(x, f).flatten(), lambda x, f: byzfl.NNM(f)(x).flatten()
    )
    yield Pair("bucketing", "Bucketing", lambda x, f: same_draw(x, f).flatten(), lambda x, f: drawn(x, f).flatten())
    yield Pair("ipm", "InnerProductManipulation", attack("ipm"), lambda x, f: byzfl.InnerProductManipulation(0.6)(x))
    yield Pair(
        "alie",
        "ALittleIsEnough",
        attack("alie", z=1.5),
        lambda x, f: byzfl.ALittleIsEnough(1.5)(x),
        LITTLE,
        lambda x, f: spread(x, factor=1.5, sample=True),
    )
    yield Pair("copy", "Mimic", attack("copy", victim=2), lambda x, f: byzfl.Mimic(2)(x))
    yield Pair(
        "sign_flip",
        "SignFlipping",
        attack("sign_flip", scale=1.0),
        lambda x, f: byzfl.SignFlipping()(x),
        "reverses the honest mean; ours the attacker's own gradient",
        attack("ipm", epsilon=1.0),
    )


def of_byzpy() -> Iterator[Pair]:
    coordinates = import_module("byzpy.aggregators.coordinate_wise")
    geometry = import_module("byzpy.aggregators.geometric_wise")
    norms = import_module("byzpy.aggregators.norm_wise")
    before = import_module("byzpy.pre_aggregators")
    attacks = import_module("byzpy.attacks")

    def on_rows(make: Callable[[int], Any]) -> Call:
        return lambda x, f: make(f).aggregate(list(x))

    def many(x: Tensor, f: int) -> Tensor:
        result: Tensor = geometry.MultiKrum(f, len(x) - f).aggregate(list(x))
        return result

    def mixed(make: Callable[[Tensor, int], Any]) -> Call:
        return lambda x, f: torch.stack(list(make(x, f).pre_aggregate(list(x)))).flatten()

    def sent(make: Callable[[int], Any]) -> Call:
        return lambda x, f: make(f).apply(honest_grads=list(x))

    def order(x: Tensor) -> list[int]:
        return random.Random(len(x)).sample(range(len(x)), len(x))

    yield Pair(
        "coordinate_median",
        "CoordinateWiseMedian",
        rule("coordinate_median"),
        on_rows(lambda f: coordinates.CoordinateWiseMedian()),
        "takes torch's median, the lower of two middle values; ours is their mean",
        lower_median,
    )
    yield Pair(
        "trimmed_mean",
        "CoordinateWiseTrimmedMean",
        rule("trimmed_mean"),
        on_rows(coordinates.CoordinateWiseTrimmedMean),
    )
    yield Pair(
        "geometric_median",
        "GeometricMedian(tol=1e-12)",
        rule("geometric_median"),
        on_rows(lambda f: geometry.GeometricMedian(tol=1e-12, max_iter=20_000)),
    )
    yield Pair(
        "krum", "Krum", rule("krum"), on_rows(geometry.Krum), NEIGHBOURS, krum_with(fewer=1, power=2, many=False)
    )
    yield Pair("multi_krum", "MultiKrum", rule("multi_krum"), many, NEIGHBOURS, krum_with(fewer=1, power=2, many=True))
    yield Pair(
        "centered_clip",
        f"CenteredClipping(M={STEPS})",
        rule("centered_clip"),
        on_rows(lambda f: norms.CenteredClipping(c_tau=TAU, M=STEPS)),
        CLIP_STEPS.format("the mean"),
        lambda x, f: clip_around(x, x.mean(dim=0), TAU, iterations=STEPS),
    )
    yield Pair(
        "nnm",
        "NearestNeighborMixing",
        lambda x, f: nearest_neighbour_mixing(x, f).flatten(),
        mixed(lambda x, f: before.NearestNeighborMixing(f)),
    )
    yield Pair(
        "bucketing",
        "Bucketing(perm=...)",
        lambda x, f: bucketing(x, np.array(order(x)), 2).flatten(),
        mixed(lambda x, f: before.Bucketing(2, perm=order(x))),
    )
    yield Pair("ipm", "EmpireAttack(-0.6)", attack("ipm"), sent(lambda f: attacks.EmpireAttack(-0.6)))

    def their_z(x: Tensor, f: int) -> Tensor:
        n = len(x) + f
        return spread(x, factor=NormalDist().inv_cdf((n - max(1, n // 2 + 1 - f)) / n), sample=False)

    yield Pair("alie", "LittleAttack", attack("alie"), sent(attacks.LittleAttack), LITTLE_Z, their_z)
    yield Pair("copy", "MimicAttack", attack("copy", victim=2), sent(lambda f: attacks.MimicAttack(2)))


def of_torchjd() -> Iterator[Pair]:
    torchjd = import_module("torchjd.aggregation")

    def several(x: Tensor, f: int) -> Tensor:
        mean: Tensor = torchjd.Krum(f, len(x) - f)(x)
        return mean

    why = "sums distances; Blanchard et al. sum their squares"
    yield Pair("mean", "Mean", rule("mean"), lambda x, f: torchjd.Mean()(x))
    yield Pair("trimmed_mean", "TrimmedMean", rule("trimmed_mean"), lambda x, f: torchjd.TrimmedMean(f)(x))
    for name, many in (("krum", False), ("multi_krum", True)):
        yield Pair(
            name,
            "Krum(n_selected=n - f)" if many else "Krum",
            rule(name),
            several if many else on_matrix(torchjd.Krum),
            why,
            krum_with(fewer=2, power=1, many=many),
        )


def of_flower() -> Iterator[Pair]:
    flower = import_module("flwr.server.strategy.aggregate")

    def on_rows(call: Callable[[list[Any], int], Any]) -> Call:
        return lambda x, f: torch.from_numpy(np.asarray(call([([row], 1) for row in x.numpy()], f)[0]))

    def bulyan(results: list[Any], f: int) -> Any:
        return flower.aggregate_bulyan(results, f, flower.aggregate_krum, to_keep=0)

    yield Pair("mean", "aggregate", rule("mean"), on_rows(lambda r, f: flower.aggregate(r)))
    yield Pair(
        "coordinate_median",
        "aggregate_median",
        rule("coordinate_median"),
        on_rows(lambda r, f: flower.aggregate_median(r)),
    )
    yield Pair(
        "trimmed_mean",
        "aggregate_trimmed_avg((f + 1/2) / n)",
        rule("trimmed_mean"),
        on_rows(lambda r, f: flower.aggregate_trimmed_avg(r, (f + 0.5) / len(r))),
    )
    yield Pair("krum", "aggregate_krum", rule("krum"), on_rows(lambda r, f: flower.aggregate_krum(r, f, 0)))
    yield Pair(
        "multi_krum",
        "aggregate_krum(to_keep=n - f)",
        rule("multi_krum"),
        on_rows(lambda r, f: flower.aggregate_krum(r, f, len(r) - f)),
    )
    yield Pair("bulyan", "aggregate_bulyan", rule("bulyan"), on_rows(bulyan))


def of_qora() -> Iterator[Pair]:
    qora = import_module("qora")

    def on_rows(method: str) -> Call:
        def call(x: Tensor, f: int) -> Tensor:
            made = qora.ByzantineAggregator(method, (f - 0.5) / len(x))  # rounded up
            return torch.from_numpy(np.asarray(made.aggregate([row[None].float().numpy() for row in x]))[0]).double()

        return call

    yield Pair("coordinate_median", "median", rule("coordinate_median"), on_rows("median"))
    yield Pair("trimmed_mean", "trimmed_mean((f - 1/2) / n)", rule("trimmed_mean"), on_rows("trimmed_mean"))


PACKAGES: dict[str, Callable[[], Iterator[Pair]]] = {
    "byzfl": of_byzfl,
    "byzpy": of_byzpy,
    "torchjd": of_torchjd,
    "flwr": of_flower,
    "qora-fl": of_qora,
}
"""Name on PyPI -> its pairs; importing it fails if it is not installed."""
