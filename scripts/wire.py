"""`python -m scripts.wire --out results/wire`: what float16 on the wire saves, and how it affects training.

Runs of `resnet.train` on handwritten digits with each `protocol.wire`, without and with attackers, over some seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from btard.boundary import Parser, output_folder, positive, program
from btard.harness.tables import markdown, show
from btard.protocol.config import HALVED

CONFIG = "configs/resnet/digits.yaml"
ATTACKS: dict[str, list[str]] = {
    "no attack": [],
    "ALIE, 7 of 16": ["--attack.name", "alie", "--byzantine", "7"],
}


def trained(folder: Path, words: list[str]) -> dict[str, Any]:
    """The outcome of the run in `folder`, which begins or continues."""
    from resnet.config import load_config
    from resnet.training import train

    config, out = load_config([CONFIG, "--out", str(folder), *words])
    summary = train(config, out)
    assert summary is not None, "a run without `until` comes to its end"
    steps = [json.loads(line)["bytes"] for line in (folder / "timings.jsonl").read_text().splitlines()]
    return {
        "test accuracy": summary["test_accuracy"],
        "test loss": json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["test_loss"],
        "honest banned": summary["honest_banned"],
        "attackers banned": summary["byzantine_banned"],
        "bytes": mean(sum(sent.values()) for sent in steps[1:40]),  # before the attack begins, after the first step
        "parameters": summary["parameters"],
    }


@program("the same command begins again")
def main() -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=output_folder, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs/wire"), help="folder of the runs; those there go on")
    parser.add_argument("--seeds", type=positive, default=2)
    parser.add_argument("--steps", type=positive, default=120)
    args = parser.parse_args()
    found: list[dict[str, Any]] = []
    for attack, more in ATTACKS.items():
        for wire in HALVED:
            for seed in range(args.seeds):
                words = ["--seed", str(seed), "--threads", "1", "--steps", str(args.steps), "--attack.start", "40"]
                folder = args.runs / f"{attack.split(',')[0].replace(' ', '_')}-{wire}-{seed}"
                said = trained(folder, [*words, "--protocol.wire", wire, *more])
                found.append({"attack": attack, "wire": wire, "seed": seed, **said})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    columns, lines = table(found)
    (args.out / "table.md").write_text(page(found, args.steps) + "\n" + markdown(columns, lines) + "\n")
    show("", columns, lines)
    print(f"files: {args.out}/results.json, table.md")


def table(found: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Columns and lines: for each attack and wire the mean and range over the seeds."""
    columns = (
        "attack",
        "wire",
        "kB per peer and step",
        "test accuracy",
        "test loss",
        "attackers banned",
        "honest banned",
    )
    lines = []
    for attack, wire in dict.fromkeys((row["attack"], row["wire"]) for row in found):
        rows = [row for row in found if (row["attack"], row["wire"]) == (attack, wire)]
        accuracies = [100 * row["test accuracy"] for row in rows]
        spread = f"{mean(accuracies):.1f}% ({min(accuracies):.1f} to {max(accuracies):.1f})"
        numbers = (
            f"{mean(row['bytes'] for row in rows) / 1000:.0f}",
            spread,
            f"{mean(r['test loss'] for r in rows):.3f}",
        )
        bans = [str(sum(row[f"{who} banned"] for row in rows)) for who in ("attackers", "honest")]
        lines.append([attack, wire, *numbers, *bans])
    return columns, lines


def spread(found: list[dict[str, Any]], fixed: str) -> float:
    """The largest difference in accuracy, in points, among the runs of one attack with the same `fixed`."""
    groups: dict[tuple[str, Any], list[float]] = {}
    for row in found:
        groups.setdefault((row["attack"], row[fixed]), []).append(100 * row["test accuracy"])
    return max(max(group) - min(group) for group in groups.values())


def page(found: list[dict[str, Any]], steps: int) -> str:
    """The results that the table shows."""
    seeds = len({row["seed"] for row in found})
    return (
        f"ResNet-18 of width 4 ({found[0]['parameters']:,} parameters) on handwritten digits, 16 peers, {steps} steps, "
        f"seeds 0 to {seeds - 1}:\nmean over the seeds, and the least and the largest. Bans are those of all seeds. "
        "Bytes are what a peer sends, before the attack\nbegins; with so small a model some 30 kB of them are no "
        "tensors. With millions of parameters the ratio is 1 to 0.75 to 0.5.\n"
        f"Accuracy differs by up to {spread(found, 'wire'):.1f} points between seeds, and by up to "
        f"{spread(found, 'seed'):.1f} between wires.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
