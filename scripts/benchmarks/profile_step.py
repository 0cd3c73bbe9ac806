"""`python -m scripts.benchmarks.profile_step`: where a step's time goes, by function, on one thread.

Gradients are prepared; nobody attacks. Times are those under `cProfile`, which makes Python somewhat slower than it is.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import time
from pathlib import Path

from btard.boundary import Parser, positive, program
from btard.protocol.config import ProtocolConfig
from scripts.benchmarks.page import Table
from scripts.traffic import RESNET18

FUNCTIONS = {
    "hashing.tensor_digest": "hashes of gradients, parts and aggregates",
    "centered_clip.centered_clip": "CenteredClip",
    "report.gradient_report": "reports, norms and products of the workers",
    "report.part_scalars": "V1, the same by the owners",
    "signed.is_finite": "sums that find NaN",
    "identity.sign": "signatures",
    "identity.verify_key": "checks of signatures",
}
"""Module and name -> what it does. None of them calls another."""


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
    spent = dict.fromkeys(FUNCTIONS, 0.0)
    calls = dict.fromkeys(FUNCTIONS, 0)
    for (file, _, name), (_, count, _, cumulative, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        function = f"{Path(file).stem}.{name}"
        if function in FUNCTIONS:
            spent[function] += 1e3 * cumulative / options.steps
            calls[function] += count // options.steps
    rows = [[what, str(calls[name]), f"{spent[name]:.1f}"] for name, what in FUNCTIONS.items()]
    rows += [["all else", "", f"{total - sum(spent.values()):.1f}"], ["a step", "", f"{total:.1f}"]]
    Table(
        f"{PEERS} peers, {options.d:,} parameters, {options.commitments}", ["what", "calls", "ms per step"], rows
    ).show()


if __name__ == "__main__":
    sys.exit(main())
