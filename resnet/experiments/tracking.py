"""The runs of a sweep for TensorBoard and for Weights & Biases, written from their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from btard.boundary import Mistake
from btard.harness.run_folder import TAGS
from resnet.experiments.grid import short
from resnet.experiments.outcomes import Outcome, Results, settings_by_key

BANNED_TAG = "peers/banned attackers"

MEASURES: dict[str, Callable[[Outcome], float | None]] = {
    "final accuracy": lambda outcome: outcome.accuracy,
    "deepest dip": lambda outcome: outcome.dip,
    "steps to recovery": lambda outcome: outcome.recovery,
    "steps until last ban": lambda outcome: outcome.last_ban,
    "honest peers banned": lambda outcome: sum(outcome.honest_bans.values()),
}
"""A run's results, by the name that is shown."""


class TrackingError(Mistake, RuntimeError):
    """A tracker cannot be used; one line that says why and what to do."""


def scalars(outcome: Outcome) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield (step, tag -> value), ascending: what was logged, by TensorBoard's names, and attackers banned so far."""
    lines = {line["step"]: line for line in outcome.run.metrics}
    bans = [ban["step"] for ban in outcome.run.bans if ban["byzantine"]]
    # Also right before and at each ban, where an export has no line, so that the curve has steps and no slopes.
    for step in sorted(lines.keys() | set(bans) | {step - 1 for step in bans if step}):
        line = lines.get(step, {})
        values = {
            tag: float(line[name]) for name, tag in TAGS.items() if isinstance(line.get(name), int | float)
        }  # fmt: skip
        if outcome.attacked:
            values[BANNED_TAG] = float(sum(ban <= step for ban in bans))
        yield step, values


def readable_settings(results: Results, outcome: Outcome) -> dict[str, str | int]:
    """Return a run's settings by the names that people look for; every run of a sweep has the same names."""
    cell, config = outcome.cell, outcome.cell.config
    found: dict[str, str | int] = {
        "attack": cell.attack,
        "defence": cell.defence,
        "rule": config.aggregator.name,
        "tau": "-" if config.radius is None else str(config.radius),
        "peers": config.peers,
        "byzantine": config.byzantine,
        "validators": config.validators,
        "start": config.attack.start if outcome.attacked else 0,
        "every": config.attack.every if outcome.attacked else 0,
        "steps": config.steps,
        "seed": config.seed,
        "width": config.model.width,
        "data": outcome.summary["data"],
    }
    flat = settings_by_key(config)
    for key in dict.fromkeys(key for other in results.grid.cells for key, _ in other.varied):
        found.setdefault(short(key), str(flat.get(key, "-")))
    return found


def write_tensorboard(
    results: Results, outcomes: Sequence[Outcome], folder: Path, listen: Callable[[], object] = lambda: None
) -> None:
    """Write a TensorBoard run for each of `outcomes`, named like it, with its curves and its row of the HParams tab.

    Events that an earlier report wrote for the same runs are replaced. Calls `listen` after each run.
    """
    from torch.utils.tensorboard import SummaryWriter  # takes seconds, so only a program that writes imports it
    from torch.utils.tensorboard.summary import hparams

    settings = {outcome.cell.name: readable_settings(results, outcome) for outcome in outcomes}
    # TensorBoard takes names and choices from any one run, so each has those of all.
    texts = {
        name: sorted({str(each[name]) for each in settings.values()})
        for name in next(iter(settings.values()), {})
        if isinstance(next(iter(settings.values()))[name], str)
    }
    for outcome in outcomes:
        place = folder / outcome.cell.name
        for old in place.glob("events.out.tfevents.*"):
            old.unlink()
        with SummaryWriter(str(place)) as writer:
            for step, values in scalars(outcome):
                for tag, value in values.items():
                    writer.add_scalar(tag, value, step)
            # As `SummaryWriter.add_hparams`, which would put them into a run of their own.
            for summary in hparams(settings[outcome.cell.name], dict.fromkeys(MEASURES, 0.0), texts):
                writer.file_writer.add_summary(summary)
            for name, measure in MEASURES.items():
                if (result := measure(outcome)) is not None:
                    writer.add_scalar(name, result, outcome.cell.config.steps)
        listen()


def write_wandb(
    results: Results,
    outcomes: Sequence[Outcome],
    project: str,
    folder: Path,
    listen: Callable[[], object] = lambda: None,
) -> None:
    """Log each of `outcomes` as a run of a Weights & Biases project, grouped by defence; its files go to folder/wandb.

    A run has the same id each time, so that it is there once. With WANDB_MODE=offline nothing is sent, and
    `wandb sync` does it later. Calls `listen` after each run. Raises TrackingError if wandb is not installed, or
    refuses.
    """
    try:
        import wandb
    except ImportError:
        raise TrackingError("--wandb: the package wandb is not installed; pip install 'wandb>=0.30,<1'") from None
    folder.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes:
        cell = outcome.cell
        try:
            run = wandb.init(
                project=project,
                id=blake3(f"{results.grid.title}\n{cell.name}".encode()).hexdigest(8),
                resume="allow",
                group=cell.defence,
                name=", ".join(filter(None, (cell.attack, cell.defence, cell.variant, f"seed {cell.seed}"))),
                tags=_tags(results, outcome),
                config=readable_settings(results, outcome),
                dir=str(folder),
                settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
            )
            for step, values in scalars(outcome):
                run.log(values, step=step)
            measures = {name: measure(outcome) for name, measure in MEASURES.items()}
            run.summary.update({name: value for name, value in measures.items() if value is not None})
            run.finish()
        except (wandb.Error, OSError) as error:
            message = " ".join(str(error).split())
            raise TrackingError(f"--wandb: {message}; `wandb login`, or WANDB_MODE=offline") from None
        listen()


def _tags(results: Results, outcome: Outcome) -> list[str]:
    """Attack and experiments, for the filters; W&B allows 64 characters each."""
    name = outcome.cell.name
    homes = [e.name for e in results.grid.experiments if any(cell.name == name for cell in e.cells)]
    return [tag[:64] for tag in dict.fromkeys((outcome.cell.attack, *homes))]
