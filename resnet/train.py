"""`python -m resnet.train CONFIG.yaml --out RUN_DIR [--dotted.key value ...]`: one training run, attacked or not.

Under `torchrun --nproc-per-node PEERS -m resnet.train ...` each peer is a process (`resnet.processes`).
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping

from btard.boundary import program
from btard.harness.settings import exit_with
from btard.harness.typed_yaml import ConfigError
from resnet.config import load_config


def under_torchrun(environment: Mapping[str, str]) -> bool:
    """Return whether this process is one of several that torchrun, or a launcher like it, has started as peers.

    Platforms set RANK and WORLD_SIZE also for a single process. Raises ConfigError for half of what a launcher sets.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return False
    if "TORCHELASTIC_RUN_ID" not in environment and environment["WORLD_SIZE"].strip() in ("", "1"):
        return False
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    numbers = ["RANK", "WORLD_SIZE", *(["MASTER_PORT"] if "MASTER_PORT" not in missing else [])]
    strange = [name for name in numbers if not environment[name].isdigit()]
    if missing or strange:
        what = f"not {' and '.join(missing)}" if missing else f"{strange[0]} is {environment[strange[0]]!r}, no number"
        raise ConfigError(
            f"environment: RANK and WORLD_SIZE = {environment['WORLD_SIZE']} are set, but {what}: start the peers by "
            "torchrun, or unset RANK and WORLD_SIZE to run them all in this process"
        )
    return True


@program("the same command goes on from the last checkpoint")
def main(argv: list[str] | None = None) -> int:
    if under_torchrun(os.environ):
        from resnet.processes import main as run_rank

        return run_rank(argv)
    warnings.showwarning = lambda message, *_args, **_kw: print(f"warning: {message}", file=sys.stderr)
    config, out = load_config(argv)
    import torch

    from btard.drivers.rules import RuleError
    from btard.protocol.behaviour import HookError
    from resnet.training import print_summary, train

    try:
        summary = train(config, out)
        assert summary is not None, "a run without `until` comes to its end"
    except (RuleError, HookError) as error:
        exit_with(error)
    except torch.OutOfMemoryError as error:
        what = str(error).partition(". ")[0]
        exit_with(MemoryError(f"{what}: lower batch_size or peers, or set mode to per_peer or device to cpu"))
    print_summary(summary, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
