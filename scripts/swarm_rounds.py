"""`python -m scripts.swarm_rounds --out FILE.json`: how long a step of the swarm takes, beside hivemind's averaging.

Every peer is a process with its own libp2p daemon and one kernel thread, on loopback, or each in a network namespace of
its own with `--delay` (ms one way), `--rate` (Mbit/s each way) or `--loss` (chance of a packet), which takes root. In
front of the times stand the delays: how often in a step everybody has to wait for a message of the others, one way.
Gradients cost nothing here: what is timed is the protocol (hashes, transfers, CenteredClip, coin, reports,
verification). hivemind averages as many tensors of the same size among as many peers in the same run, right after.
Medians over the rounds of the slowest peer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from typing import Any

from btard.boundary import Parser, output_file, program
from btard.harness import tables
from btard.harness.progress import track
from scripts import netns

CASES = tuple((peers, d) for peers in (4, 8, 16) for d in (1_000_000, 10_000_000, 18_000_000))
COLUMNS = (
    *(">peers", ">parameters", ">relays", ">delays", ">BTARD, s", ">hivemind averaging, s", ">ratio"),
    *(">with matchmaking, s", ">MB sent per peer"),
)


def table(found: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [str(row["peers"]), f"{row['d']:,}", str(row["relays"]), str(sum(row["delays"].values()))]
        + [f"{value:.2f}" for value in (row["btard"], row["hivemind"], row["btard"] / row["hivemind"])]
        + [f"{row['hivemind_with_matchmaking']:.2f}", f"{row['bytes'] / 1e6:.1f}"]
        for row in found
    ]


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="python -m scripts.swarm_rounds", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=output_file, required=True, metavar="FILE.json")
    made.add_argument("--cases", nargs="+", metavar="PEERSxD", help="such as 4x1000000; by default all")
    made.add_argument(
        "--relays", nargs="+", default=["0", "b"], metavar="R", help="numbers, or b: all that can be (default: 0 b)"
    )
    made.add_argument("--delay", type=float, default=0.0, metavar="MS", help="of each message, one way")
    made.add_argument("--rate", type=float, default=math.inf, metavar="MBIT", help="of each peer's line, each way")
    made.add_argument("--loss", type=float, default=0.0, metavar="CHANCE", help="that a packet is lost, from 0 to 1")
    return made


@program("the same command begins again")
def main(argv: list[str] | None = None) -> int:
    said = parser().parse_args(argv)
    try:
        chosen = [tuple(map(int, word.split("x"))) for word in said.cases] if said.cases else CASES
        if any(len(pair) != 2 or pair[0] < 3 or pair[1] < pair[0] for pair in chosen):
            raise ValueError("--cases: expected PEERSxD with at least 3 peers and as many parameters, as in 4x1000000")
        if said.delay < 0 or said.rate <= 0 or not 0 <= said.loss < 1:
            raise ValueError("--delay is at least 0, --rate more than 0, --loss from 0 to less than 1")
        line = netns.Line(said.delay / 1000, said.rate, said.loss)
        if line.simulated and (reason := netns.reason_not_to()) is not None:
            raise ValueError(f"--delay, --rate and --loss are not possible here: {reason}")
        relays = [None if word == "b" else int(word) for word in said.relays]
        said.out.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import torch

    from scripts.rounds import case, most

    found: list[dict[str, Any]] = []
    for peers, d in track(chosen, "rounds", unit="cases"):
        found += case(peers, d, sorted({most(peers) if count is None else count for count in relays}), line)
        content = {
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "line": {"delay_ms": said.delay, "mbit": said.rate if line.rate < math.inf else None, "loss": said.loss},
            "cases": found,
        }
        said.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    rows = table(found)
    said.out.with_suffix(".md").write_text(tables.markdown(COLUMNS, rows) + "\n", encoding="utf-8")
    tables.show("", COLUMNS, rows)
    counts = [(row["peers"], row["relays"], name, n) for row in found for name, n in row["delays"].items()]
    tables.show("delays of a step", (">peers", ">relays", "for", ">delays"), [[*map(str, count)] for count in counts])
    print(f"files: {said.out}, {said.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
