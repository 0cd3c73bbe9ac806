"""The names of a coordinator's metrics in TensorBoard and in Weights & Biases, and the charts that show them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

TAGS = {
    "loss": "loss/train, median of peers",
    "loss_at_ban": "loss/at a ban",
    "loss_at_healing": "loss/where all go back",
    "validation_loss": "loss/validation",
    "active": "peers/active",
    "attacking": "peers/attacking",
    "removed": "peers/removed so far",
    "samples_per_second": "speed/samples per second",
    "samples": "speed/samples per step",
    "sent": "network/bytes per step, all peers",
    "sent_per_peer": "network/bytes per step, median of peers",
    "lr": "optimizer/learning rate",
    "back_to": "protocol/went back to step",
}
"""Name in metrics.jsonl -> tag."""
BANS, TIME, VALIDATION = "bans/", "time/", "validation/"
"""Prefixes of the tags for each kind of ban, for each phase of a step, and for what else a task measures."""
SECONDS = "speed/seconds per step"


def scalars(row: Mapping[str, Any], seconds: Mapping[str, float], measured: Collection[str] = ()) -> dict[str, float]:
    """Tag -> value of a step: its metrics that have a tag and a value, and the seconds of its phases.

    `measured`: the metrics that the task has measured, under names of its own.
    """
    own = {name: VALIDATION + name for name in measured} | TAGS
    named = {own.get(name, name if name.startswith(BANS) else None): value for name, value in row.items()}
    found = {tag: float(value) for tag, value in named.items() if tag is not None and isinstance(value, int | float)}
    found |= {TIME + phase: spent for phase, spent in seconds.items()}
    return found | ({SECONDS: sum(seconds.values())} if seconds else {})


@dataclass(frozen=True)
class Chart:
    """Several tags in one chart: these, or all that begin with `prefix`."""

    title: str
    tags: tuple[str, ...] = ()
    prefix: str | None = None

    @property
    def patterns(self) -> list[str]:
        """Regular expressions, matched from the beginning of a tag."""
        return [f"{self.prefix}.*"] if self.prefix else [f"{re.escape(tag)}$" for tag in self.tags]


def _chart(title: str, *names: str) -> Chart:
    return Chart(title, tuple(TAGS[name] for name in names))


SECTIONS: dict[str, tuple[Chart, ...]] = {
    "Loss": (
        _chart("Loss, with bans", "loss", "loss_at_ban", "loss_at_healing"),
        _chart("Validation loss", "validation_loss"),
        Chart("Validation, what else the task measures", prefix=VALIDATION),
    ),
    "Peers": (_chart("Peers in the run, attacking, removed", "active", "attacking", "removed"),),
    "Bans": (Chart("Removed so far, by kind", prefix=BANS),),
    "Time": (Chart("Seconds of a step, by phase", prefix=TIME), Chart("Seconds of a step", (SECONDS,))),
    "Speed": (_chart("Samples per second", "samples_per_second"), _chart("Samples per step", "samples")),
    "Network": (_chart("Bytes per step, all peers", "sent"), _chart("Bytes per step and peer", "sent_per_peer")),
    "Optimizer": (_chart("Learning rate", "lr"),),
    "Healing": (_chart("Back to step", "back_to"),),
}
"""Charts by section, in the order in which they are shown."""
