"""Where a coordinator's metrics go in addition to its folder's files: TensorBoard, and Weights & Biases."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import yaml

from btard.files import write_file
from btard.harness.settings import config_text
from btard.harness.typed_yaml import ConfigError
from btard.swarm import tags
from btard.swarm.config import SwarmConfig
from btard.swarm.lines import Say

FLUSH = 10
"""Seconds after which TensorBoard's file contains what was logged."""
PATIENCE, FINISH = 60.0, 45.0
"""Seconds that Weights & Biases may take to begin a run, and to accept what is left at its end."""
WANDB_ID = "wandb_id.txt"
"""In the run folder: the run's id at Weights & Biases, so that it is one run however often it is interrupted."""
WANDB_VERSION = "wandb>=0.30,<1"
BANS_TABLE = "removed peers"
BANS, HEALINGS = "bans", "healings"
"""What is recorded in words."""


class Tracker(Protocol):
    """Shows a run while it is running."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the scalars of a step, by tag; steps ascend."""

    def note(self, what: str, step: int, line: str) -> None:
        """Show what happened in this step: `what` is `BANS` or `HEALINGS`."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        """Show the end, None if the run has not reached it, and close."""


class TensorBoard:
    """Event files in `folder`, without what they have of steps from `step` on; charts under Custom Scalars."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes seconds, so only a program that writes imports it

        self._writer = SummaryWriter(str(folder), purge_step=step or None, flush_secs=FLUSH)
        layout = {
            section: {chart.title: ["Multiline", chart.patterns] for chart in charts}
            for section, charts in tags.SECTIONS.items()
        }
        self._writer.add_custom_scalars(layout)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def note(self, what: str, step: int, line: str) -> None:
        self._writer.add_text(what, line, step)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run in the project `config.wandb`; a run from the same folder is continued. Its own files are in `out`/wandb.

    What does not work at the start is a ConfigError of one line. Later nothing is: the first failure is said, and the
    run goes on without what was lost.
    """

    def __init__(self, config: SwarmConfig, out: Path, say: Say) -> None:
        self.out, self._say, self._failed = out, say, False
        wandb = self._wandb = log_in("wandb", "; WANDB_MODE=offline keeps all here for now")
        try:
            self._run = wandb.init(
                project=config.wandb,
                id=_run_id(out),
                resume="allow",
                name=config.run_id,
                group=defence(config),
                tags=[config.attack.name or "no attack", defence(config)],
                config=yaml.safe_load(config_text(config)),
                dir=str(out),
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    disable_git=True,
                    save_code=False,
                    init_timeout=PATIENCE,
                    finish_timeout=FINISH,
                    finish_timeout_raises=True,
                ),
            )
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except (wandb.Error, OSError) as error:
            raise ConfigError(
                f"wandb: the run could not begin ({explain(error)}); check network and key (`wandb login`), set "
                "WANDB_MODE=offline to send it later, or leave `wandb` out"
            ) from None
        self._sync = f"`wandb sync {Path(self._run.dir).parent}`"
        say(f"Weights & Biases: {f'offline, {self._sync} sends it' if self._run.offline else self._run.url}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda: self._run.log({**values, "step": step}, step=step))

    def note(self, what: str, step: int, line: str) -> None:
        """Bans are in the table at the end, the rest is in the curves."""

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            words = {name: value for name, value in summary.items() if isinstance(value, int | float | str)}
            self._try(lambda: self._run.summary.update(words))
            self._try(lambda: self._run.log({BANS_TABLE: self._table(summary)}))
        try:
            self._run.finish(exit_code=0 if summary is not None else 1)
        except Exception as error:
            self._say(f"Weights & Biases: not all has arrived ({explain(error)}); {self._sync} sends it")

    def _table(self, summary: Mapping[str, Any]) -> Any:
        attackers = summary["byzantine"]
        rows = [
            [ban["step"], ban["peer"], ban["kind"], ", ".join(map(str, ban["accusers"])), ban["peer"] in attackers]
            for ban in summary["bans"]
        ]
        return self._wandb.Table(columns=["step", "peer", "kind", "accusers", "attacker"], data=rows)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            if not self._failed:
                self._failed = True
                self._say(
                    f"Weights & Biases: {explain(error)}; the run continues, and what is missing there is in "
                    f"{self.out}/metrics.jsonl"
                )


def log_in(what: str, advice: str = "") -> Any:
    """The package wandb, with a key if it will send anything. `what` and `advice`: for the message.

    Errors: ConfigError, in one line.
    """
    try:
        import wandb
    except ImportError:
        raise ConfigError(f"{what}: the package wandb is not installed; pip install '{WANDB_VERSION}'") from None
    try:
        online = wandb.setup().settings.mode in ("online", "shared")
        known = not online or wandb.login(prompt=False, verify=False)
    except (wandb.Error, OSError, ValueError) as error:
        raise ConfigError(f"{what}: {explain(error)}; `wandb login` with a key of your account") from None
    if not known:
        raise ConfigError(f"{what}: not logged in to Weights & Biases; run `wandb login`, or set WANDB_API_KEY{advice}")
    return wandb


def defence(config: SwarmConfig) -> str:
    """The name of the aggregation: the difference between runs under the same attack."""
    tau = config.protocol.tau
    return "mean" if tau == float("inf") else f"BTARD, tau {tau}"


def describe(ban: Mapping[str, Any]) -> str:
    """One line about a removed peer, as `SwarmView.bans` has it."""
    by = f", accused by {', '.join(map(str, ban['accusers']))}" if ban["accusers"] else ""
    return f"step {ban['step']}: peer {ban['peer']}, {ban['kind']}{by}"


def show(
    trackers: Sequence[Tracker], row: Mapping[str, Any], seconds: Mapping[str, float], measured: Collection[str]
) -> None:
    """Hand the metrics of a step to all trackers; `measured`: those that are the task's own."""
    values = tags.scalars(row, seconds, measured)
    for tracker in trackers:
        tracker.log(row["step"], values)


def _run_id(out: Path) -> str:
    file = out / WANDB_ID
    if not file.exists():
        write_file(file, secrets.token_hex(8) + "\n")
    return file.read_text(encoding="utf-8").strip()


def explain(error: Exception) -> str:
    """The text of an error, in one line, and never the key."""
    text = " ".join(str(error).split()) or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, "***") if key else text
