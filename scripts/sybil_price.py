"""`python -m scripts.sybil_price --out results/sybil`: what an attack costs a Sybil that returns after each ban.

It serves its probation honestly, attacks as soon as it is a member, is banned, and comes back under a new key. Counted
are the honest gradients that it has to compute and the steps in which it attacks, against T_join / a.
"""

from __future__ import annotations

import json
import sys

from btard.boundary import Parser, output_folder, positive, program
from btard.harness.progress import track
from btard.harness.tables import markdown, show

SETTINGS = ((5, 3), (8, 5), (8, 10))
"""(honest members, T_join)"""


@program("the same command begins again")
def main() -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=output_folder, required=True)
    parser.add_argument("--lives", type=positive, default=10, help="of each Sybil")
    parser.add_argument("--seeds", type=positive, default=6)
    args = parser.parse_args()
    import torch

    from scripts.sybil import sybil_price

    torch.set_num_threads(1)
    rows, lines = [], []
    columns = (
        "members, the Sybil included",
        "T_join",
        "lives",
        "honest gradients",
        "attacks",
        "per attack",
        "T_join / a",
    )
    for members, probation in SETTINGS:
        counts = [
            sybil_price(members, probation, args.lives, seed)
            for seed in track(range(args.seeds), f"{members} members, T_join {probation}", unit="seeds")
        ]
        honest, attacks = (sum(column) for column in zip(*counts, strict=True))
        a, lives = members + 1, args.lives * args.seeds
        rows.append({"members": a, "probation": probation, "lives": lives, "honest": honest, "attacks": attacks})
        shares = f"{honest / attacks:.2f}", f"{probation / a:.2f}"
        lines.append([*map(str, (a, probation, lives, honest, attacks)), *shares])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    (args.out / "table.md").write_text(markdown(columns, lines) + "\n")
    show("", columns, lines)
    print(f"files: {args.out}/results.json, table.md")


if __name__ == "__main__":
    sys.exit(main())
