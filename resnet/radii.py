"""`python -m resnet.radii CONFIG.yaml --out FILE.json [--dotted.key value ...]`: clipping radii for narrower networks.

A radius tau has a meaning only relative to the norm of an honest part, and a narrow network has smaller gradients than
the standard one. So a radius of the paper, given for width 64, is converted in units of that norm:

    tau(width) = tau(64) * median norm of an honest part(width) / median norm of an honest part(64)

The medians are over all peers' parts at the initial parameters, where nothing has been trained that could differ, and
over `SEEDS` seeds.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from btard.boundary import Parser, positive, program
from btard.harness import tables
from btard.harness.progress import track
from btard.harness.settings import parse_command_line
from resnet.config import Config

if TYPE_CHECKING:
    import torch

    from resnet.data import Dataset

PROGRAM = "python -m resnet.radii"

STANDARD = 64
"""The width that the paper's radii are for."""

PAPER = (1.0, 10.0)
"""The paper's radii for each part, at the standard width."""

SEEDS = 3


@dataclass(frozen=True)
class PartNorms:
    """Norms of honest parts at the initial parameters of a network, over all peers, parts and seeds."""

    width: int
    parameters: int
    median: float
    lowest: float
    highest: float


def part_norms(config: Config, data: Dataset) -> PartNorms:
    """Return the norms of the parts of honest gradients for the model and peers of `config`."""
    import torch

    from resnet.cohort import make_model

    norms = torch.cat([_of_seed(replace(config, seed=config.seed + i), data) for i in range(SEEDS)])
    low, high = norms.min().item(), norms.max().item()
    count = sum(parameter.numel() for parameter in make_model(config, data).parameters())
    return PartNorms(config.model.width, count, statistics.median(norms.tolist()), low, high)


def _of_seed(config: Config, data: Dataset) -> torch.Tensor:
    """Norms [peers * parts] of the first step's parts."""
    import torch

    from btard.protocol.effects import Compute
    from btard.protocol.hashing import batch_seed, digest
    from btard.protocol.split import Split
    from btard.training.vector import flatten
    from resnet.cohort import make_model, make_task

    model = make_model(config, data)
    task = make_task(config, data, model)
    coin = digest("first coin", config.run_id)
    requests = [Compute(0, peer, batch_seed(config.run_id, 0, peer, coin)) for peer in range(config.peers)]
    rows = torch.empty(config.peers, task.d)
    task.gradients(flatten(model), requests, rows)
    split = Split(task.d, config.peers)
    return torch.stack([split.view(row, part).norm() for row in rows for part in range(config.peers)])


def counterpart(tau: float, here: PartNorms, standard: PartNorms) -> float:
    """Return the radius that has the same ratio to the parts of `here` as `tau` to those of `standard`."""
    return tau * here.median / standard.median


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, or 2 after one line about what is wrong."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument("config", metavar="CONFIG.yaml", help="data, peers and batch size; any key can be changed")
    parser.add_argument("--out", required=True, metavar="FILE.json")
    parser.add_argument("--widths", type=positive, nargs="+", default=[4, 8, 16, 32], metavar="W", help="beside 64")
    chosen, words = parser.parse_known_args(argv)
    config, out = parse_command_line(Config, [chosen.config, "--out", chosen.out, *words], PROGRAM)
    import torch

    from resnet.data import load_dataset
    from resnet.training import check_batch

    data = load_dataset(config.data.name, config.data.path, label=config.data.label)
    check_batch(config, data)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    widths = sorted({*chosen.widths, STANDARD})
    models = [replace(config, model=replace(config.model, width=width)) for width in widths]
    found = [part_norms(model, data) for model in track(models, "widths", unit="widths")]
    standard = next(norms for norms in found if norms.width == STANDARD)
    heading = ("width", ">parameters", ">median norm of a part", *(f">tau {tau:g}" for tau in PAPER))
    rows = [
        [str(n.width), f"{n.parameters:,}", f"{n.median:.3g}", *(f"{counterpart(t, n, standard):.2g}" for t in PAPER)]
        for n in found
    ]
    tables.show(f"{data.label}, {config.peers} peers, {config.batch_size} samples each, {SEEDS} seeds", heading, rows)
    content = {
        "data": data.label,
        "peers": config.peers,
        "batch_size": config.batch_size,
        "init": config.model.init,
        "seeds": SEEDS,
        "torch": torch.__version__,
        "widths": [{**asdict(n), "radii": {f"{tau:g}": counterpart(tau, n, standard) for tau in PAPER}} for n in found],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
