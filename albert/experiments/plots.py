"""Figures of finished swarms: a panel for each attack and start, with the attack and the bans marked.

Swarms that differ in their seed alone are one line, their mean, in a band, their range.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from albert.experiments.results import MEAN, NO_ATTACK, Swarm
from btard.attacks.senders import PHASES as STEP
from btard.harness.figures import BLUE, BROWN, GREEN, ORANGE, PURPLE, SKY, VERMILION, bare, new_figure

OTHERS = (BLUE, GREEN, PURPLE, SKY)
PHASES = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, BROWN, "0.35", "0.6")
"""Colours of the phases that take longest."""
IN_A_STEP = ("gradients", *STEP)
"""The phases of a step in their order."""
CALM = {"color": "0.6", "linestyle": (0, (4, 2)), "linewidth": 1.4}
"""How swarms without attack are drawn."""
COLUMNS = 3
TOP = 1.3
"""Losses above this many times the first one are not drawn: the training has diverged."""
APART = 0.8
"""How far below the others the bars of the mean begin, in bars."""
SMOOTH = 7
"""Number of steps whose median a curve of speeds shows."""

Curve = Callable[[Swarm], tuple[list[int], list[float]]]


def loss_figure(swarms: Sequence[Swarm]) -> Figure:
    """Training loss over steps; rings are bans of attackers, crosses removals of honest peers, triangles healings."""
    return _losses(swarms, "loss", "training loss, median of the peers", bans=True)


def validation_figure(swarms: Sequence[Swarm]) -> Figure:
    """Validation loss at the checkpoints, over steps."""
    return _losses(swarms, "validation_loss", "validation loss", marker=".")


def _losses(swarms: Sequence[Swarm], key: str, label: str, **style: Any) -> Figure:
    """Without what a diverged training came to: the range is that of the losses at the start, and of the lowest one."""
    attacked = [swarm for swarm in swarms if swarm.attack != NO_ATTACK] or swarms
    known = [losses for swarm in attacked if (losses := swarm.series(key)[1])]
    limit = TOP * max((losses[0] for losses in known), default=1.0)
    lowest = min((min(losses) for losses in known), default=0.0)

    def curve(swarm: Swarm) -> tuple[list[int], list[float]]:
        steps, losses = swarm.series(key)
        cut = next((i + 1 for i, loss in enumerate(losses) if loss > 2 * limit), len(losses))
        return steps[:cut], losses[:cut]

    figure = _panels(swarms, curve, label, **style)
    for axes in figure.axes:
        if axes.has_data():
            axes.set_ylim(lowest - 0.1 * (limit - lowest), limit)
    return figure


def peers_figure(swarms: Sequence[Swarm]) -> Figure:
    """Peers that are in the run, over steps."""
    figure = _panels(swarms, lambda swarm: swarm.series("active"), "alive peers", drawstyle="steps-post")
    most = max(value for swarm in swarms for value in swarm.series("active")[1])
    for axes in figure.axes:
        axes.set_ylim(0, most + 0.5)
    return figure


def speed_figure(swarms: Sequence[Swarm]) -> Figure:
    """Sequences that the swarm takes per second, over steps."""

    def curve(swarm: Swarm) -> tuple[list[int], list[float]]:
        steps, values = swarm.series("samples_per_second")
        half = SMOOTH // 2
        return steps, [statistics.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]

    figure = _panels(swarms, curve, "samples per second")
    for axes in figure.axes:
        axes.set_ylim(bottom=0)
    return figure


def phases_figure(swarms: Sequence[Swarm]) -> Figure:
    """Where the time of a step goes: the median seconds of each phase, a bar for each kind of swarm.

    The phases that take longest have colours; from left to right they stand in the order in which a step has them.
    Swarms of the mean stand apart.
    """
    kinds = [swarm for swarm in _first_of_each(swarms) if swarm.timings]
    kinds.sort(key=lambda swarm: swarm.defence == MEAN)
    found = {phase for swarm in kinds for line in swarm.timings for phase in line} - {"step"}
    phases = [*(phase for phase in IN_A_STEP if phase in found), *sorted(found - set(IN_A_STEP))]
    medians = [{p: statistics.median(line.get(p, 0.0) for line in s.timings) for p in phases} for s in kinds]
    longest = sorted(phases, key=lambda phase: (-max(seconds[phase] for seconds in medians), phase))[: len(PHASES)]
    shown, rest = [p for p in phases if p in longest], [p for p in phases if p not in longest]
    bars = [(phase, colour, [s[phase] for s in medians]) for phase, colour in zip(shown, PHASES, strict=False)]
    bars.append(("all others", "0.85", [sum(seconds[phase] for phase in rest) for seconds in medians]))
    figure = new_figure(10.5, 1.2 + 0.3 * len(kinds))
    axes = figure.subplots()
    places = [place + APART * (swarm.defence == MEAN) for place, swarm in enumerate(kinds)]
    left = [0.0] * len(kinds)
    for phase, colour, widths in bars:
        axes.barh(places, widths, left=left, color=colour, label=phase, height=0.7)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, [f"{swarm.attack}, {swarm.defence}" for swarm in kinds])
    axes.invert_yaxis()
    axes.set_xlabel("seconds per step, median of steps and peers")
    bare(axes, grid="x")
    figure.legend(frameon=False, fontsize="small", loc="outside right upper")
    return figure


def _first_of_each(swarms: Sequence[Swarm]) -> list[Swarm]:
    """One swarm for each attack and defence, that with the earliest start and the smallest seed."""
    ordered = sorted(swarms, key=lambda s: (s.attack != NO_ATTACK, s.attack, s.defence, s.start or 0, s.seed))
    return list({(s.attack, s.defence): s for s in reversed(ordered)}.values())[::-1]


def _panels(swarms: Sequence[Swarm], curve: Curve, label: str, *, bans: bool = False, **style: Any) -> Figure:
    """A row for each start and a column for each attack; without an attack one panel."""
    attacked = [swarm for swarm in swarms if swarm.attack != NO_ATTACK]
    calm = [swarm for swarm in swarms if swarm.attack == NO_ATTACK]
    attacks = sorted({swarm.attack for swarm in attacked}) or [NO_ATTACK]
    starts = sorted({swarm.start for swarm in attacked if swarm.start is not None}) or [0]
    cells = [(start, attack) for start in starts for attack in attacks]
    columns = min(COLUMNS, len(attacks)) if len(starts) == 1 else len(attacks)
    rows = -(-len(cells) // columns)
    figure = new_figure(max(4.8, 3.5 * columns), 0.5 + 2.5 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    colours = _colours(swarms)
    labelled: set[str] = set()
    for panel, (start, attack) in zip(panels, cells, strict=False):
        inside = [swarm for swarm in attacked if (swarm.start, swarm.attack) == (start, attack)]
        shown = [swarm for swarm in inside if curve(swarm)[0]]
        for defence, group in _by_defence(calm).items():
            _line(panel, group, curve, labelled, f"{defence}, {NO_ATTACK}", style | CALM)
        for defence, group in _by_defence(shown).items():
            looks = {
                "color": colours[defence],
                "linewidth": 1.4,
                "linestyle": (0, (5, 1.5)) if defence == MEAN else "-",
            }
            _line(panel, group, curve, labelled, defence, looks | style)
        for defence, group in _by_defence(shown).items() if bans else ():
            _mark(panel, group, curve, colours[defence], labelled)
        if shown:
            panel.axvline(start, color="0.75", linewidth=1, zorder=0)
            panel.set_xlim(min(curve(s)[0][0] for s in shown) - 1, max(curve(s)[0][-1] for s in shown) + 1)
        panel.set_title(attack if attack == NO_ATTACK else f"{attack} from step {start}", fontsize="medium")
        bare(panel, grid="both")
        panel.set_xlabel("step")
    for panel in panels[len(cells) :]:
        panel.set_axis_off()
    for row in range(rows):
        panels[row * columns].set_ylabel(label, fontsize="small")
    figure.legend(frameon=False, fontsize="small", loc="outside upper center", ncols=min(len(labelled), 2 * columns))
    return figure


def _colours(swarms: Sequence[Swarm]) -> dict[str, str]:
    others = sorted({swarm.defence for swarm in swarms} - {MEAN})
    return {MEAN: VERMILION} | {name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}


def _by_defence(swarms: Sequence[Swarm]) -> dict[str, list[Swarm]]:
    """The swarms of a panel, grouped with those that differ only in their seed, the mean last."""
    names = sorted(dict.fromkeys(swarm.defence for swarm in swarms), key=lambda name: name == MEAN)
    return {name: [swarm for swarm in swarms if swarm.defence == name] for name in names}


def _values(group: Sequence[Swarm], curve: Curve) -> dict[int, list[float]]:
    """Step -> what each swarm has there, for steps that all have."""
    curves = [dict(zip(*curve(swarm), strict=True)) for swarm in group]
    return {step: [one[step] for one in curves] for step in curves[0] if all(step in one for one in curves)}


def _line(
    panel: Axes, group: Sequence[Swarm], curve: Curve, labelled: set[str], label: str, style: dict[str, Any]
) -> None:
    values = _values(group, curve)
    if len(group) > 1:
        label += f" ({len(group)} seeds)"
        step: Literal["post"] | None = "post" if "drawstyle" in style else None
        low, high = [min(found) for found in values.values()], [max(found) for found in values.values()]
        panel.fill_between(list(values), low, high, color=style["color"], alpha=0.18, lw=0, step=step)
    means = [statistics.fmean(found) for found in values.values()]
    panel.plot(list(values), means, label=None if label in labelled else label, **style)
    labelled.add(label)


def _mark(panel: Axes, group: Sequence[Swarm], curve: Curve, colour: str, labelled: set[str]) -> None:
    """Marks on the group's line, for what happened in any of its swarms."""
    known = {step: statistics.fmean(found) for step, found in _values(group, curve).items()}
    bans, removed, healings = (
        sorted({step for swarm in group for step in steps(swarm)})
        for steps in (lambda s: s.bans, lambda s: s.honest_removed, lambda s: s.healings)
    )
    marks: tuple[tuple[str, list[int], dict[str, Any]], ...] = (
        ("an attacker is banned", bans, {"marker": "o", "mfc": "none", "mec": colour, "ms": 7}),
        ("an honest peer is removed", removed, {"marker": "x", "color": "black", "ms": 7}),
        ("all go back to an earlier state", healings, {"marker": "<", "mfc": colour, "mec": colour, "ms": 6}),
    )
    for label, steps, style in marks:
        at = [step for step in steps if step in known]
        if at:
            shown = None if label in labelled else label
            panel.plot(at, [known[step] for step in at], linestyle="none", label=shown, **style)
            labelled.add(label)
