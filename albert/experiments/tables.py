"""Tables of finished swarms, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from albert.experiments.results import NO_ATTACK, Swarm
from btard.harness.tables import markdown
from btard.protocol.heal import HEALED
from btard.protocol.messages import NOBODY


def bans_table(swarms: Sequence[Swarm]) -> str:
    """A line for each swarm: who was banned when, and the last loss."""
    columns = ("attack", "defence", "seed", "attack from", "attackers banned at step", "honest peers removed")
    rows = []
    for swarm in sorted(swarms, key=lambda s: (s.attack, s.start or 0, s.defence, s.seed)):
        attackers = len(swarm.summary["byzantine"])
        bans = ", ".join(map(str, swarm.bans)) or "-"
        found = f"{bans} ({len(swarm.bans)} of {attackers})" if attackers else "-"
        loss = swarm.summary["loss"]
        start = "-" if swarm.start is None else str(swarm.start)
        row = [swarm.attack, swarm.defence, str(swarm.seed), start, found, str(swarm.summary["honest_banned"])]
        rows.append([*row, "-" if loss is None else f"{loss:.2f}"])
    return markdown((*columns, "last loss"), rows) + "\n"


def results_table(swarms: Sequence[Swarm]) -> str:
    """A line for each attack, start and defence, over its seeds."""
    columns = ("attack", "from step", "defence", "seeds", "attackers banned", "steps from attack to last ban")
    groups: dict[tuple[str, int, str], list[Swarm]] = {}
    for swarm in sorted(swarms, key=lambda s: (s.attack != NO_ATTACK, s.attack, s.start or 0, s.defence, s.seed)):
        groups.setdefault((swarm.attack, swarm.start or 0, swarm.defence), []).append(swarm)
    rows = []
    for (attack, start, defence), group in groups.items():
        attackers = sum(len(swarm.summary["byzantine"]) for swarm in group)
        banned = sum(len(swarm.bans) for swarm in group)
        waits = [swarm.bans[-1] - start for swarm in group if swarm.bans]
        losses = [swarm.summary["loss"] for swarm in group if swarm.summary["loss"] is not None]
        speeds = [speed for swarm in group for speed in swarm.series("samples_per_second")[1]]
        row = [attack, "-" if attack == NO_ATTACK else str(start), defence, str(len(group))]
        row += [f"{banned} of {attackers}" if attackers else "-", _range(waits, ".0f")]
        row += [str(sum(swarm.summary["honest_banned"] for swarm in group)), _range(losses, ".2f")]
        row += [_range(_last(group, "validation_loss"), ".2f"), _range(_above(group, swarms), "+.2f")]
        row += [_range(_last(group, "masked_word_accuracy"), ".1%")]
        rows.append([*row, f"{statistics.median(speeds):.0f}" if speeds else "-"])
    last = ("last loss", "last validation loss", "most above no attack", "masked words right", "samples per second")
    return markdown((*columns, "honest peers removed", *last), rows) + "\n"


def ledger_table(swarm: Swarm) -> str:
    """A line for each entry of the swarm's ledger: what all honest peers agree on."""
    if not swarm.ledger:
        return "The ledger is empty: nobody was accused.\n"
    rows = []
    for step, entry in swarm.removals:
        votes = list(entry["votes"].values())
        count = ", ".join(f"{votes.count(vote)} {vote}" for vote in sorted(set(votes))) or "-"
        by = ", ".join(map(str, entry["accusers"])) or "-"
        out = ", ".join(map(str, entry["peers"])) or "nobody"
        evidence = f"`{entry['evidence'][:12]}`" if entry.get("evidence") else "-"
        back = entry["step"] - entry["about_step"] if entry["kind"] == HEALED else 0
        what = f"{entry['kind']}, back to step {step - back}" if back else entry["kind"]
        accused = "nobody" if entry["accused"] == NOBODY else str(entry["accused"])
        rows.append([str(step), what, accused, by, out, count, evidence])
    return markdown(("step", "what", "accused", "by", "removed", "votes", "evidence"), rows) + "\n"


def _last(swarms: Sequence[Swarm], key: str) -> list[float]:
    """What each swarm had of a metric at its end, or when it was measured last; nothing of a swarm without it."""
    found = [[*swarm.series(key)[1], swarm.summary.get(key)] for swarm in swarms]
    return [known[-1] for values in found if (known := [value for value in values if value is not None])]


def _above(group: Sequence[Swarm], swarms: Sequence[Swarm]) -> list[float]:
    """How far each swarm's validation loss is above that without attack, at most over the measurements."""
    calm = next((swarm.series("validation_loss") for swarm in swarms if swarm.attack == NO_ATTACK), ([], []))
    known = [swarm.series("validation_loss") for swarm in group if swarm.attack != NO_ATTACK]
    return [float(max(losses - np.interp(steps, *calm))) for steps, losses in known if losses and calm[0]]


def _range(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"
