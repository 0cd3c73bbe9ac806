"""`python -m scripts.soak --runs 500 --out DIR`: random mixtures of attackers on random cohorts with lossy links.

Every run must end with the same ledger and the same parameters at all honest peers and with no honest peer removed,
except by the trade of ELIMINATE: at most one honest peer per Byzantine one. Resumable: finished seeds are skipped.
A failure prints the seed that reproduces it: `python -m scripts.soak --seed N`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from btard.boundary import Parser, output_folder, positive, program
from btard.harness import tables
from btard.harness.progress import Bar


def finished(file: Path) -> dict[int, dict[str, Any]]:
    """Seed -> its line, from an interrupted soak."""
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return {line["seed"]: line for line in map(json.loads, lines)}


def markdown(summary: dict[str, Any]) -> str:
    """The summary for people."""
    low, high = summary["peers"]
    kinds = [(f"`{kind}`", str(count)) for kind, count in summary["ledger_kinds"].items()]
    failed = ", ".join(map(str, summary["failures"])) or "none"
    attackers, removed, traded = (summary[key] for key in ("attackers", "byzantine_removed", "honest_eliminated"))
    steps = summary["steps_per_run"]
    lines = [
        f"{summary['runs']} random mixtures, {low} to {high} peers, 1 to 3 validators, {steps} steps each. Links lose",
        "none, a tenth or a fifth of all sendings; about half of the runs have slow peers.",
        "",
        f"- Failed seeds: {failed}; what follows is about the others." if summary["failures"] else "- No run failed.",
        f"- {attackers} attackers with {summary['attacks']} attacks, {removed} of them removed in these steps.",
        f"- Honest peers removed: {traded}, each by ELIMINATE together with a Byzantine one.",
        "- After every step all honest peers held the same ledger and the same parameters.",
        "",
        tables.markdown(("ledger entries", "count"), kinds),
    ]
    return "\n".join(lines) + "\n"


@program("the same command begins again")
def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=positive, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--largest", type=positive, default=32, help="peers at most")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=output_folder, default=Path("runs/soak"))
    parser.add_argument("--seed", type=int, help="run this mixture alone and show what happens")
    args = parser.parse_args()
    from scripts.mixtures import draw, outcome, run, summarise

    if args.seed is not None:
        mixture = draw(args.seed, largest=args.largest)
        print(json.dumps(mixture.described, indent=2))
        for entry in run(mixture):
            print(entry.to_json())
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "runs.jsonl"
    done = finished(file)
    todo = [seed for seed in range(args.first, args.first + args.runs) if seed not in done]
    with ProcessPoolExecutor(args.jobs) as pool, file.open("a", buffering=1) as sink:
        running = [pool.submit(outcome, seed, args.largest) for seed in todo]
        with Bar("soak", len(todo), unit="runs") as bar:
            for future in as_completed(running):
                line = future.result()
                done[line["seed"]] = line
                sink.write(json.dumps(line) + "\n")
                if line["failure"] is not None:
                    bar.say(f"FAILED: python -m scripts.soak --largest {args.largest} --seed {line['seed']}")
                    bar.say(f"  {line['failure']}")
                bar.advance()
    results = [done[seed] for seed in sorted(done)]
    summary = summarise(results)
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    (args.out / "table.md").write_text(markdown(summary))
    counts = [summary[key] for key in ("runs", "failures", "attackers", "byzantine_removed", "honest_eliminated")]
    row = [str(len(count) if isinstance(count, list) else count) for count in counts]
    tables.show(str(args.out), (">runs", ">failures", ">attackers", ">removed", ">honest eliminated"), [row])
    print(f"files: {file}, {args.out}/summary.json, table.md")
    return 1 if summary["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
