"""`python -m scripts.traffic --out results/traffic`: bytes that each peer sends per step, against plain all-reduce.

Plain butterfly all-reduce sends 2 d (n - 1)/n floats out of every peer. The protocol sends the same tensors, and beside
them hashes, signatures and scalars whose size does not depend on d: what remains is measured for several n and fitted.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import numpy as np

from btard.boundary import Parser, output_folder, positive, program
from btard.harness.tables import show
from btard.protocol.config import ProtocolConfig

RESNET18 = 11_173_962
LIMIT = 1.02


def sent(peers: int, byzantine: int, validators: int, d: int, steps: int = 2) -> tuple[float, int, int]:
    """Mean and maximum over the peers of the bytes sent in the last of `steps` honest steps, and its workers."""
    import torch

    from btard.drivers.local import LocalDriver
    from btard.task import QuadraticTask

    config = ProtocolConfig(peers=peers, byzantine=byzantine, validators=validators, run_id="traffic")
    driver = LocalDriver(config, QuadraticTask(d))
    params = torch.ones(d)
    for _ in range(steps):  # nobody validates in the first one
        result = driver.step(params)
    assert not result.removed
    return float(np.mean(list(result.sent.values()))), max(result.sent.values()), len(result.workers)


def tensors(peers: int, workers: int, d: int) -> float:
    """Mean bytes of parts and aggregates that a peer sends: k workers send d (k-1)/k floats and d/k to n - 1 peers."""
    return workers / peers * 4 * (d * (workers - 1) / workers + d / workers * (peers - 1))


def remainders(sizes: list[int], validators: int) -> list[dict[str, Any]]:
    """The bytes per peer and step in addition to the tensors, without Byzantine peers and with the most possible."""
    rows = []
    for n in sizes:
        row: dict[str, Any] = {"peers": n}
        for name, b in (("no relays", 0), ("most relays", (n - validators - 1) // 2)):
            d = 64 * n
            mean, _, workers = sent(n, b, validators, d)
            row[name] = mean - tensors(n, workers, d)
        rows.append(row)
    return rows


def fit(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """remainder = (n - 1) (c + e n) bytes per peer, least squares."""
    n = np.array([row["peers"] for row in rows], dtype=float)
    found = np.array([row[name] for row in rows])
    basis = np.stack([n - 1, (n - 1) * n], axis=1)
    (c, e), *_ = np.linalg.lstsq(basis / found[:, None], np.ones_like(found), rcond=None)
    error = float(np.abs(basis @ [c, e] / found - 1).max())
    return {"per recipient": round(float(c), 1), "per recipient and peer": round(float(e), 2), "largest error": error}


@program("the same command begins again")
def main() -> None:
    parser = Parser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=output_folder, required=True)
    parser.add_argument("--d", type=positive, default=RESNET18, help="parameters; by default those of ResNet-18")
    parser.add_argument("--peers", type=positive, default=16)
    args = parser.parse_args()
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    rows = remainders([4, 8, 16, 32, 64], 1)
    plain = 8 * args.d * (args.peers - 1) / args.peers
    mean, largest, workers = sent(args.peers, (args.peers - 2) // 2, 1, args.d)
    result: dict[str, Any] = {
        "peers": args.peers,
        "workers": workers,
        "parameters": args.d,
        "plain_all_reduce": plain,
        "mean_sent": mean,
        "largest_sent": largest,
        "mean_ratio": mean / plain,
        "largest_ratio": largest / plain,
        "remainder_share": (mean - tensors(args.peers, workers, args.d)) / plain,
        "remainders": rows,
        "fits": {name: fit(rows, name) for name in ("no relays", "most relays")},
        "versions": {"torch": torch.__version__},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    lines = [
        f"Bytes sent per step, {args.peers} peers, {args.d:,} parameters (float32), {workers} workers and a validator,",
        f"no attack; plain butterfly all-reduce among {args.peers} peers sends {plain / 1e6:.2f} MB per peer.",
        "",
        "| | MB | against plain all-reduce |",
        "| --- | --- | --- |",
        f"| mean over the peers | {mean / 1e6:.2f} | {mean / plain:.4f} |",
        f"| a worker (the most) | {largest / 1e6:.2f} | {largest / plain:.4f} |",
        f"| of the mean: hashes, signatures, scalars | {result['remainder_share'] * plain / 1e6:.3f} "
        f"| {result['remainder_share']:.5f} |",
        "",
        "What does not grow with the model, in bytes per peer and step:",
        "",
        "| peers | broadcasts trusted (`relays` 0) | relays for the most Byzantine peers |",
        "| --- | --- | --- |",
        *(f"| {row['peers']} | {row['no relays']:,.0f} | {row['most relays']:,.0f} |" for row in rows),
        *(
            f"| formula | (n - 1) ({a['per recipient']} + {a['per recipient and peer']} n) "
            f"| (n - 1) ({b['per recipient']} + {b['per recipient and peer']} n) |"
            for a, b in [(result["fits"]["no relays"], result["fits"]["most relays"])]
        ),
        "",
        "The formulas are fitted; their largest relative errors are "
        + " and ".join(f"{f['largest error']:.1%}" for f in result["fits"].values())
        + ". Relays that nobody needs cost a signature of 64 bytes per phase and recipient.",
    ]
    (args.out / "table.md").write_text("\n".join(lines) + "\n")
    row = str(args.peers), f"{mean / 1e6:.2f} MB", f"{mean / plain:.4f}"
    show(str(args.out), ("peers", "sent per peer", "against plain"), [row])
    if mean > LIMIT * plain:
        raise SystemExit(f"error: more than {LIMIT} times plain all-reduce: {mean / plain:.4f}")


if __name__ == "__main__":
    sys.exit(main())
