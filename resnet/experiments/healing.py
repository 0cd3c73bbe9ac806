"""What healing repairs: final accuracies with and without it, over the clipping radius."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from btard.harness.figures import BLACK, BLUE, VERMILION, bare, new_figure
from resnet.experiments.outcomes import Outcome, Series
from resnet.experiments.tables import Table, spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OFF, AUTO = "off", "auto"
COLUMNS = ("attack", "tau", "seeds", "not healed", "healed", "without attack", "points below", "returns", "steps lost")
CLOSE = 1.0
"""Percentage points below the run without attack within which the harm of an attack counts as repaired."""

Pairs = dict[tuple[str, float], tuple[Series, Series]]
"""(attack, tau) -> the runs without and with healing. The tau of auto is 0."""


def pairs(series: Sequence[Series]) -> Pairs:
    """The attacks and radii for which runs of both kinds are finished, in the order of `series`."""
    found: dict[tuple[str, float], dict[bool, Series]] = {}
    for entry in series:
        if entry.protocol and entry.config.attack.name:
            found.setdefault((entry.attack, _radius(entry)), {})[entry.config.protocol.heal != OFF] = entry
    return {key: (both[False], both[True]) for key, both in found.items() if len(both) == 2}


def _radius(entry: Series) -> float:
    tau = entry.config.protocol.tau
    return 0.0 if isinstance(tau, str) else float(tau)


def _accuracies(entry: Series) -> list[float]:
    return [100 * outcome.accuracy for outcome in entry.outcomes]


def default_table(series: Sequence[Series]) -> Table:
    """A row per attack, and for none, with healed runs at the radius auto and at fixed ones: auto beside the best."""
    healed: dict[str, dict[float, list[float]]] = {}
    for entry in series:
        if entry.protocol and entry.config.protocol.heal != OFF:
            healed.setdefault(entry.attack, {})[_radius(entry)] = _accuracies(entry)
    rows = [["attack", "tau auto", "best fixed tau", "accuracy with it", "points below"]]
    for attack, by_radius in healed.items():
        means = {tau: sum(values) / len(values) for tau, values in by_radius.items() if tau}
        if means and 0.0 in by_radius:
            best = max(means, key=lambda tau: means[tau])
            own = by_radius[0.0]
            below = f"{means[best] - sum(own) / len(own):.1f}"
            rows.append([attack, spread(own, 1), f"{best:g}", spread(by_radius[best], 1), below])
    return rows


def steps_lost(outcome: Outcome) -> int:
    """How many steps of a run were wasted: those that it went back, and those that ended with going back."""
    return sum(step + 1 - to for step, to in outcome.run.returns)


def healing_table(series: Sequence[Series]) -> Table:
    """A row per attack and radius for which runs of both kinds are finished."""
    rows = [list(COLUMNS)]
    for (attack, tau), (plain, healed) in pairs(series).items():
        below = [100 * (o.reference_accuracy - o.accuracy) for o in healed.outcomes if o.reference_accuracy is not None]
        rows.append(
            [
                attack,
                f"{tau:g}" if tau else AUTO,
                str(len(healed.outcomes)),
                *(spread(_accuracies(entry), 1) for entry in (plain, healed)),
                spread([100 * value for value in healed.values(lambda o: o.reference_accuracy)], 1),
                spread(below, 1) + (" *" if below and sum(below) / len(below) > CLOSE else ""),
                spread([len(outcome.run.returns) for outcome in healed.outcomes], 0),
                spread([steps_lost(outcome) for outcome in healed.outcomes], 0),
            ]
        )
    return rows


DEFAULT = """With healing: the radius that follows the gradients beside the best of the fixed ones, which is chosen
afterwards for each attack; nobody can know it before."""

LEGEND = f"""Points below: the healed run, under the run without attack with the same settings; * more than {CLOSE:g} on
average. Returns: how often it went back to an earlier state. Steps lost: those that it went back, and those in which it
did."""


def healing_figure(series: Sequence[Series]) -> Figure | None:
    """A panel per attack: final accuracy over the radius, with and without healing; None without runs of both kinds.

    Bars are the range over seeds; the dashed line is the mean of the runs without attack. The radius auto stands
    apart, on the right.
    """
    found = pairs(series)
    fixed = sorted({tau for _, tau in found if tau})
    apart = 10 * fixed[-1] if fixed else 1.0
    attacks = list(dict.fromkeys(attack for attack, _ in found))
    if not attacks:
        return None
    columns = min(5, len(attacks))
    rows = -(-len(attacks) // columns)
    figure = new_figure(1.9 * columns + 0.5, 1.6 * rows + 0.7)
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes, attack in zip(panels, attacks, strict=False):
        axes.set_title(attack, fontsize=9, pad=3)
        here = {tau: both for (name, tau), both in found.items() if name == attack}
        quiet = [value for _, healed in here.values() for value in healed.values(lambda o: o.reference_accuracy)]
        if quiet:
            mean = 100 * sum(quiet) / len(quiet)
            axes.axhline(mean, color=BLACK, lw=0.9, linestyle=(0, (4, 2)), label="without attack")
        for kind, (colour, marker, label) in enumerate(((VERMILION, "o", "not healed"), (BLUE, "s", "healed"))):
            for which, line in ((fixed, "-"), ([0.0], "none")):
                values = [_accuracies(here[tau][kind]) for tau in which if tau in here]
                places = [tau or apart for tau in which if tau in here]
                means = [sum(of_tau) / len(of_tau) for of_tau in values]
                spans = zip(means, values, strict=True)
                bars = list(zip(*((mean - min(v), max(v) - mean) for mean, v in spans), strict=True))
                style = {"color": colour, "marker": marker, "ms": 3.5, "lw": 1.3, "capsize": 2, "linestyle": line}
                if places:
                    axes.errorbar(places, means, bars, label=label if which is fixed else None, **style)
        axes.set_xscale("log")
        if any(not tau for _, tau in found):
            axes.set_xticks([*fixed, apart], [*(f"{tau:g}" for tau in fixed), AUTO])
            axes.minorticks_off()
        bare(axes)
    for axes in panels[len(attacks) :]:
        axes.set_visible(False)
    panels[0].set_ylim(0, 103)
    figure.supxlabel("clipping radius tau", fontsize=9)
    figure.supylabel("final test accuracy, %", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8.5)
    return figure
