"""`python -m scripts.benchmarks.profile_step`: where a step's time goes, by function, on one thread.

Gradients are prepared; nobody attacks. Times are those under `cProfile`, which makes Python somewhat slower than it is.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from typing import Any

from btard.boundary import Parser, positive, program
from btard.protocol.config import ProtocolConfig
from scripts.benchmarks.page import Table
from scripts.traffic import RESNET18


def functions() -> dict[str, Any]:
    """What they do -> the functions that take most of a step. None of them calls another."""
    from btard.aggregation.solver import side_by_side
    from btard.protocol import directions, hashing, identity, scalars, signed

    return {
        "hashes of gradients, parts and aggregates": hashing.tensor_digest,
        "CenteredClip": side_by_side,
        "reports and V1: norms and products": scalars.row_scalars,
        "random directions": directions.part_directions,
        "sums that find NaN": signed.is_finite,
        "signatures": identity.Identity.sign,
        "checks of signatures": identity.verify_key.function,
    }


@program("the same command begins again")
def main() -> None:
    parser = Parser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--d", type=positive, default=RESNET18, help="parameters; by default those of ResNet-18")
    parser.add_argument("--steps", type=positive, default=3)
    parser.add_argument("--commitments", choices=("hashed", "ideal"), default="hashed")
    options = parser.parse_args()
    import torch

    from btard.drivers.local import LocalDriver
    from scripts.benchmarks.workloads import PEERS, PreparedTask

    torch.set_num_threads(1)
    config, task = ProtocolConfig(peers=PEERS, run_id="profile"), PreparedTask(options.d, PEERS, "cpu")
    driver = LocalDriver(config, task, commitments=options.commitments)
    params = torch.zeros(options.d)
    for _ in range(2):  # nobody validates in the first step, and the second warms that up
        driver.step(params)
    profile = cProfile.Profile()
    started = time.perf_counter()
    profile.enable()
    for _ in range(options.steps):
        driver.step(params)
    profile.disable()
    total = 1e3 * (time.perf_counter() - started) / options.steps
    stats, left, rows = pstats.Stats(profile).stats, total, []  # type: ignore[attr-defined]
    for what, function in functions().items():
        code = function.__code__
        _, count, _, cumulative, _ = stats.get(
            (code.co_filename, code.co_firstlineno, code.co_name), (0, 0, 0, 0.0, {})
        )
        spent = 1e3 * cumulative / options.steps
        rows.append([what, str(count // options.steps), f"{spent:.1f}"])
        left -= spent
    rows += [["all else", "", f"{left:.1f}"], ["a step", "", f"{total:.1f}"]]
    Table(
        f"{PEERS} peers, {options.d:,} parameters, {options.commitments}", ["what", "calls", "ms per step"], rows
    ).show()


if __name__ == "__main__":
    sys.exit(main())
