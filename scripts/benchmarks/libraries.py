"""The same rules elsewhere: the textbook's CenteredClip, torch's median, and the libraries byzfl and byzpy.

The libraries are measured where they are installed; nothing here needs them. byzpy pins older versions of torch than
we use but runs with newer ones: `pip install --no-deps byzfl byzpy` and `pip install scipy seaborn cloudpickle`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor

from scripts.benchmarks.textbook import textbook_clip

Rule = Callable[[Tensor], Tensor]

OTHERS = ("textbook", "torch", "byzfl", "byzpy")
STEPS = 20
"""Iterations of CenteredClip, which none of them runs to convergence."""


def rules_of(other: str, byzantine: int, tau: float) -> dict[str, Rule] | str:
    """Our name of a rule -> theirs, [n, d] -> [d], for `byzantine` rows and radius `tau`; or why there is none."""
    if other == "textbook":
        return {"centered_clip": lambda x: textbook_clip(x, tau, STEPS)}
    if other == "torch":
        return {"coordinate_median": lambda x: x.median(dim=0).values}
    try:
        return _byzfl(byzantine, tau) if other == "byzfl" else _byzpy(byzantine, tau)
    except ImportError as error:
        missing = error.name or "a module"
        return "not installed" if missing == other else f"not usable: it needs {missing}"


def _byzfl(byzantine: int, tau: float) -> dict[str, Rule]:
    byzfl = importlib.import_module("byzfl")
    return {
        "mean": byzfl.Average(),
        "coordinate_median": byzfl.Median(),
        "trimmed_mean": byzfl.TrMean(byzantine),
        "geometric_median": byzfl.GeometricMedian(),
        "krum": byzfl.Krum(byzantine),
        "multi_krum": byzfl.MultiKrum(byzantine),
        # Made anew for every call: an object starts from its last result.
        "centered_clip": lambda x: byzfl.CenteredClipping(L=STEPS, tau=float(tau))(x),
    }


def _byzpy(byzantine: int, tau: float) -> dict[str, Rule]:
    coordinates = importlib.import_module("byzpy.aggregators.coordinate_wise")
    geometry = importlib.import_module("byzpy.aggregators.geometric_wise")
    norms = importlib.import_module("byzpy.aggregators.norm_wise")

    def on_rows(aggregator: object) -> Rule:
        return lambda x: aggregator.aggregate(list(x))  # type: ignore[attr-defined]

    def multi_krum(x: Tensor) -> Tensor:
        return geometry.MultiKrum(byzantine, len(x) - byzantine).aggregate(list(x))

    return {
        "coordinate_median": on_rows(coordinates.CoordinateWiseMedian()),
        "trimmed_mean": on_rows(coordinates.CoordinateWiseTrimmedMean(byzantine)),
        "geometric_median": on_rows(geometry.GeometricMedian()),
        "krum": on_rows(geometry.Krum(byzantine)),
        "multi_krum": multi_krum,
        "centered_clip": on_rows(norms.CenteredClipping(c_tau=tau, M=STEPS)),
    }
