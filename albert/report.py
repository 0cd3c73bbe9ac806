"""`python -m albert.report DIR --out FOLDER`: loss under each attack, bans, and a table, of swarms in DIR.

DIR holds a folder for each swarm, as `scripts.albert_attacks` leaves them. FOLDER gets loss.png and loss.svg, bans.md,
and of each swarm what both are made of: settings, metrics, ledger and summary. `python -m albert.report FOLDER` makes
the same again from these.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from rich.markdown import Markdown

from albert.swarm import COORDINATOR
from btard.harness.progress import console_for_all
from btard.harness.run_folder import RunFolderError, read_metrics, read_summary
from btard.harness.settings import exit_with

KEPT = ("config.yaml", "metrics.jsonl", "ledger.jsonl", "summary.json")
PRIVATE = ("network", "data")
"""Sections of the settings that say where something lay on one machine."""
NO_ATTACK = "no attack"
COLOURS = {"mean": "#D55E00", "BTARD": "#0072B2"}
COLUMNS = 3
TOP = 1.6
"""Losses of more than so many times the first one are not drawn: the training has diverged."""


@dataclass(frozen=True)
class Swarm:
    """A finished swarm, by its folder's files."""

    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def defence(self) -> str:
        tau = self.config["protocol"]["tau"]
        return "mean" if tau == float("inf") else "BTARD"

    @property
    def attack(self) -> str:
        attack = self.config["attack"]
        if attack["name"] is None:
            return NO_ATTACK
        options = ", ".join(f"{name} {value}" for name, value in attack["options"].items())
        name = "constant direction" if attack["name"] == "random_direction" else attack["name"].replace("_", " ")
        return f"{name} ({options})" if options else name

    @property
    def bans(self) -> list[int]:
        """The steps in which attackers were banned, ascending."""
        attackers = self.summary["byzantine"]
        return sorted(ban["step"] for ban in self.summary["bans"] if ban["peer"] in attackers)


def read_swarms(folder: Path) -> list[Swarm]:
    """The finished swarms in `folder`, by name. Errors: RunFolderError if there is none."""
    swarms = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        place = entry / COORDINATOR if (entry / COORDINATOR).is_dir() else entry
        summary = read_summary(place) if (place / "config.yaml").exists() else None
        if summary is not None:
            config = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
            swarms.append(Swarm(place, config, read_metrics(place), summary))
    if not swarms:
        raise RunFolderError(
            f"{folder}: holds no swarm that came to its end; python -m scripts.albert_attacks makes some"
        )
    return swarms


def draw(swarms: Sequence[Swarm]) -> Figure:
    """A panel per attack: loss over steps with the mean and with BTARD, without attack in grey, bans as rings."""
    first = [s for s in swarms if s.config["seed"] == min(s.config["seed"] for s in swarms)]
    attacks = list(dict.fromkeys(s.attack for s in first if s.attack != NO_ATTACK)) or [NO_ATTACK]
    columns = min(COLUMNS, len(attacks))
    rows = -(-len(attacks) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
    calm = [s for s in first if s.attack == NO_ATTACK and s.defence == "BTARD"]
    limit = TOP * max(s.metrics[0]["loss"] for s in first)
    for panel, attack in zip(panels, attacks, strict=False):
        for swarm in calm:
            panel.plot(*_curve(swarm, limit), color="0.6", linestyle=(0, (4, 2)), label="BTARD, no attack")
        for swarm in (s for s in first if s.attack == attack):
            steps, losses = _curve(swarm, limit)
            [line] = panel.plot(steps, losses, color=COLOURS[swarm.defence], label=swarm.defence)
            known = dict(zip(steps, losses, strict=True))
            at = [step for step in swarm.bans if step in known]
            panel.plot(
                at,
                [known[step] for step in at],
                "o",
                mfc="none",
                mec=line.get_color(),
                ms=8,
                label="ban" if at else None,
            )
            start = swarm.config["attack"]["start"]
            panel.axvline(start, color="0.8", linewidth=1, zorder=0)
        panel.set_title(attack)
        panel.set_xlabel("step")
        panel.set_ylim(top=limit)
        panel.grid(alpha=0.25)
    for panel in panels:  # those without an attack
        panel.set_axis_off()
    drawn = figure.axes[: len(attacks)]
    for row in range(rows):
        figure.axes[row * columns].set_ylabel("training loss, median of the peers")
    drawn[0].legend(frameon=False, fontsize="small")
    return figure


def _curve(swarm: Swarm, limit: float) -> tuple[list[int], list[float]]:
    """Steps and losses up to where the training diverges."""
    pairs = [(line["step"], line["loss"]) for line in swarm.metrics if line["loss"] is not None]
    cut = next((i + 1 for i, (_, loss) in enumerate(pairs) if loss > 2 * limit), len(pairs))
    return [step for step, _ in pairs[:cut]], [loss for _, loss in pairs[:cut]]


def table(swarms: Sequence[Swarm]) -> str:
    """Markdown: a line for each swarm."""
    lines = ["| attack | defence | seed | attack from | attackers banned at step | honest peers removed | last loss |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for swarm in sorted(swarms, key=lambda s: (s.attack, s.defence, s.config["seed"])):
        attackers = len(swarm.summary["byzantine"])
        bans = ", ".join(map(str, swarm.bans)) or "-"
        start = swarm.config["attack"]["start"] if attackers else "-"
        found = f"{bans} ({len(swarm.bans)} of {attackers})" if attackers else "-"
        loss = swarm.summary["loss"]
        lines.append(
            f"| {swarm.attack} | {swarm.defence} | {swarm.config['seed']} | {start} | {found} | "
            f"{swarm.summary['honest_banned']} | {'-' if loss is None else f'{loss:.2f}'} |"
        )
    return "\n".join(lines) + "\n"


def export(swarms: Sequence[Swarm], target: Path) -> None:
    """Copy what the report is made of, without where things lay on this machine."""
    for swarm in swarms:
        name = swarm.folder.parent.name if swarm.folder.name == COORDINATOR else swarm.folder.name
        folder = target / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in KEPT:
            if (swarm.folder / file).exists() and (swarm.folder / file).resolve() != (folder / file).resolve():
                shutil.copyfile(swarm.folder / file, folder / file)
        public = {key: value for key, value in swarm.config.items() if key not in PRIVATE}
        (folder / "config.yaml").write_text(yaml.safe_dump(public, sort_keys=False), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m albert.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="by default DIR itself")
    arguments = parser.parse_args(argv)
    out = arguments.out or arguments.folder
    try:
        swarms = read_swarms(arguments.folder)
    except RunFolderError as error:
        exit_with(error)
    out.mkdir(parents=True, exist_ok=True)
    figure = draw(swarms)
    figure.savefig(out / "loss.png", dpi=110)
    figure.savefig(out / "loss.svg", metadata={"Date": None})
    (out / "bans.md").write_text(table(swarms), encoding="utf-8")
    if out.resolve() != arguments.folder.resolve():
        export(swarms, out)
    console = console_for_all()
    console.print(Markdown(table(swarms)))
    console.print(f"figure: {out}/loss.png and loss.svg   table: {out}/bans.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
