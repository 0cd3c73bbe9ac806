"""`python -m scripts.wire_albert CONFIG.yaml --out results/wire`: what float16 on the wire saves, and costs ALBERT.

All peers of a swarm's configuration in one process, honest, with each `protocol.wire`, over some seeds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from btard.boundary import Parser, output_folder, positive, program
from btard.extras import need
from btard.protocol.config import HALVED

if TYPE_CHECKING:
    from albert.config import Config

PROGRAM = "python -m scripts.wire_albert"


def trained(config: Config, label: str) -> dict[str, Any]:
    """Validation loss and accuracy after the last step, and the bytes that a peer sent in a step."""
    import torch

    from albert.task import make
    from btard.drivers.local import LocalDriver
    from btard.harness.progress import track

    torch.set_num_threads(config.threads or 1)
    task, optimizer = make(config)
    driver = LocalDriver(config.protocol_config(), task)
    sent: list[float] = []
    for step in track(range(config.steps), label, unit="steps"):
        result = driver.step(optimizer.params, optimizer.state())
        sent.append(mean(result.sent.values()))
        if result.back_to is not None or result.removed:
            raise RuntimeError(f"{label}: step {step} removed {result.removed}, and nobody attacks")
        optimizer.apply(result.gradient, step)
    measured = task.evaluation()(optimizer.params)
    return {"bytes": mean(sent), "parameters": task.d, "data": task.corpus.digest, **measured}


@program("the same command begins again")
def main(argv: Sequence[str] | None = None) -> int:
    """0; 2 after one line about a mistake."""
    parser = Parser(prog=PROGRAM, description=__doc__)
    parser.add_argument("config", metavar="CONFIG.yaml", help="the swarm's configuration; any key can be changed")
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=positive, default=2)
    chosen, words = parser.parse_known_args(argv)
    need("experiments", "hivemind", "pytorch_optimizer", "transformers", "yaml")
    from albert.config import Config
    from btard.harness.settings import parse_command_line
    from btard.harness.tables import markdown, show

    found: list[dict[str, Any]] = []
    config, _ = parse_command_line(Config, [chosen.config, "--out", str(chosen.out), *words], PROGRAM)
    config = replace(config, byzantine=0, attack=type(config.attack)())
    for wire in HALVED:
        for seed in range(chosen.seeds):
            protocol = replace(config.protocol, wire=wire)  # type: ignore[arg-type]
            run = replace(config, seed=seed, protocol=protocol, run_id=f"wire/{seed}")
            found.append({"wire": wire, "seed": seed, **trained(run, f"{wire}, seed {seed}")})
    out: Path = chosen.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "albert.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    columns, lines = table(found)
    command = " ".join((chosen.config, *words))
    text = page(found, config, command) + "\n" + markdown(columns, lines) + "\n"
    (out / "albert.md").write_text(text, encoding="utf-8")
    show("", columns, lines)
    return 0


def table(found: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and lines: for each wire the mean and range over the seeds."""
    columns = ("wire", "kB per peer and step", "validation loss", "masked words", "sentence order")
    lines = []
    for wire in dict.fromkeys(row["wire"] for row in found):
        rows = [row for row in found if row["wire"] == wire]
        losses = [row["validation_loss"] for row in rows]
        lines.append(
            [
                wire,
                f"{mean(row['bytes'] for row in rows) / 1000:.0f}",
                f"{mean(losses):.4f} ({', '.join(f'{loss:.4f}' for loss in losses)})",
                f"{mean(row['masked_word_loss'] for row in rows):.4f}",
                f"{mean(row['sentence_order_loss'] for row in rows):.4f}",
            ]
        )
    return columns, lines


def page(found: Sequence[dict[str, Any]], config: Config, words: str) -> str:
    """What the table shows, and the command."""
    seeds = sorted({row["seed"] for row in found})
    of_seeds = [[row["validation_loss"] for row in found if row["seed"] == seed] for seed in seeds]
    of_wires = [[row["validation_loss"] for row in found if row["wire"] == wire] for wire in HALVED]
    apart = [max(max(losses) - min(losses) for losses in groups) for groups in (of_seeds, of_wires)]
    return (
        f"ALBERT with {found[0]['parameters']:,} parameters, {config.peers} honest peers in one process, "
        f"{config.steps} steps of {config.batch.total} sequences,\ndata of digest {found[0]['data'][:16]}. Losses are "
        f"those of the validation split: the mean over the seeds, and of seeds 0 to {seeds[-1]}.\nThey differ by up to "
        f"{apart[0]:.4f} between wires with the same seed, and by up to {apart[1]:.4f} between seeds with the same "
        f"wire.\n\n`{PROGRAM} {words} --out results/wire`\n"
    )


if __name__ == "__main__":
    sys.exit(main())
