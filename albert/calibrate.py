"""`python -m albert.calibrate CONFIG.yaml --out DIR [--steps N] [--samples N] [--dotted.key value ...]`.

Checks whether this machine computes the same bits of a gradient twice, as `protocol.validation exact` demands, and
measures how far apart honest peers' gradients are if they compute differently, which `tolerant` must know. Run it once
on each kind of machine that will train.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from btard.boundary import Parser, positive, program
from btard.extras import need

if TYPE_CHECKING:
    import torch

    from albert.config import Config
    from albert.task import AlbertTask
    from btard.calibration import Proposal

PROGRAM = "python -m albert.calibrate"
AS_SET = "as configured"
"""The way with which all others are compared."""
ALIKE = ("again", "other threads")
"""Ways in which peers with one kind of machine, one precision and one configuration may still differ."""


@dataclass(frozen=True)
class Measured:
    """How far gradients computed in some way are from those computed as configured, batch by batch."""

    way: str
    relative: tuple[float, ...]
    """Distances, relative to the larger norm; 0 for equal bits."""

    @property
    def equal(self) -> int:
        """Batches whose gradients were equal to the bit."""
        return sum(error == 0 for error in self.relative)


def ways(config: Config, device: torch.device) -> dict[str, Config]:
    """The ways in which this machine can compute besides `config`: name -> configuration. The first one repeats it."""
    found = {"again": config}
    if device.type == "cpu":
        found[ALIKE[1]] = replace(config, threads=2 if config.threads == 1 else 1)
    else:
        other: Literal["float32", "float16"] = "float32" if config.precision == "float16" else "float16"
        found[f"in {other}"] = replace(config, precision=other)
    return found


def measure(config: Config, *, steps: int, samples: int) -> list[Measured]:
    """Compare `samples` public batches before and after `steps` steps of training.

    Errors: DataError; ConfigError for a GPU that is not there, or a `start_from` that does not fit.
    """
    import torch

    from albert.data.corpus import Corpus
    from albert.task import make, make_task
    from btard.protocol.tolerance import difference
    from btard.swarm.startup import begin
    from btard.swarm.task import TaskSource, pick_device

    device, corpus = pick_device(config.device), Corpus(config.data.path)
    start = begin(config, TaskSource("albert.task:make", make, type(config)))
    tasks = {name: (make_task(other, corpus, device), other) for name, other in ways(config, device).items()}
    own = make_task(config, corpus, device)
    apart: dict[str, list[float]] = {name: [] for name in tasks}
    optimizer = start.optimizer
    before = torch.get_num_threads()
    try:
        for step in range(steps + 1):
            if step in (0, steps):
                for number in range(samples):
                    mine = _gradient(own, config, optimizer.params, ("calibration", step, number))
                    for name, (task, other) in tasks.items():
                        theirs = _gradient(task, other, optimizer.params, ("calibration", step, number))
                        apart[name].append(difference(mine, theirs).relative)
            if step < steps:
                optimizer.apply(_gradient(own, config, optimizer.params, ("training", step, 0)), start.first + step)
    finally:
        torch.set_num_threads(before)
    return [Measured(name, tuple(errors)) for name, errors in apart.items()]


def _gradient(task: AlbertTask, config: Config, params: torch.Tensor, name: tuple[str, int, int]) -> torch.Tensor:
    """The gradient [d] of one peer's public batch, as it would send it."""
    import torch

    from btard.protocol.commit import clip_gradient
    from btard.protocol.effects import Compute
    from btard.protocol.hashing import digest

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    rows = torch.empty(1, task.d, device=task.device)
    workers = max(1, config.peers - config.protocol.validators)
    task.gradients(params, [Compute(name[1], 0, digest("calibrate", config.seed, *name))], rows, workers=workers)
    return clip_gradient(rows[0], config.protocol.clip_lambda)


def proposals(found: Sequence[Measured], validations: int, rounding: float = 0.0) -> dict[str, Proposal]:
    """Tolerances by the machines that train together: those that compute the same, and all that were measured.

    `rounding`: as for `propose`.
    """
    from btard.calibration import propose

    mixes = {"one kind of machine, one precision": [m for m in found if m.way in ALIKE], "all of these ways": [*found]}
    errors = {name: zip(*(m.relative for m in among), strict=True) for name, among in mixes.items()}
    return {name: propose([max(batch) for batch in of_mix], validations, rounding) for name, of_mix in errors.items()}


def lines(found: Sequence[Measured], proposed: Mapping[str, Proposal]) -> Iterator[str]:
    """The conclusions, in words."""
    again = found[0]
    if again.equal == len(again.relative):
        yield f"exact: yes, {again.equal} of {again.equal} gradients had the same bits when they were computed again;"
        yield "peers need equal machines, versions, threads, precision and batch.per_device"
    else:
        yield f"exact: NO, only {again.equal} of {len(again.relative)} gradients had the same bits when computed again:"
        yield "honest peers would be banned; set protocol.validation tolerant"
    for name, proposal in proposed.items():
        if proposal.tolerance:
            false = f"at most {proposal.false_accusations_bound:.2g} false accusations a run"
            largest = f"largest error {proposal.largest:.1e} of {proposal.samples} batches"
            yield f"tolerant, {name}: protocol.gradient_tol {proposal.tolerance:g} ({largest}; {false})"


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    """0; 2 after one line about a mistake."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument("config", metavar="CONFIG.yaml", help="the swarm's configuration")
    parser.add_argument("--out", required=True, metavar="DIR", help="where calibration.json goes")
    parser.add_argument("--steps", type=positive, default=20, help="training steps between measurements (default 20)")
    parser.add_argument("--samples", type=positive, default=30, help="public batches at each of them (default 30)")
    chosen, overrides = parser.parse_known_args(argv)
    need("experiments", "hivemind", "pytorch_optimizer", "transformers", "yaml")
    from albert.config import Config
    from btard.harness import tables
    from btard.harness.settings import parse_command_line

    config, out = parse_command_line(Config, [chosen.config, "--out", chosen.out, *overrides], PROGRAM)
    found = measure(config, steps=chosen.steps, samples=chosen.samples)
    proposed = proposals(found, max(1, config.steps * config.protocol.validators), config.protocol.rounding)
    rows = []
    for m in found:
        ordered = sorted(m.relative)
        middle, largest = ordered[len(ordered) // 2], ordered[-1]
        rows.append((m.way, str(len(ordered)), str(m.equal), f"{middle:.1e}", f"{largest:.1e}"))
    tables.show(f"Gradients, beside those {AS_SET}", ("way", ">batches", ">equal bits", ">median", ">largest"), rows)
    said = list(lines(found, proposed))
    print(*said, sep="\n")
    _write(out, config, found, proposed, said)
    return 0


def _write(
    out: Path, config: Config, found: Sequence[Measured], proposed: Mapping[str, Proposal], said: Sequence[str]
) -> None:
    import torch

    content = {
        "config": asdict(config),
        "ways": {m.way: m.relative for m in found},
        "proposals": {name: asdict(proposal) for name, proposal in proposed.items()},
        "in words": list(said),
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "calibration.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
