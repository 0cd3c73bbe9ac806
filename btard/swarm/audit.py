"""The task of a peer's run folder, for `python -m btard.audit RUN_DIR`: of any swarm whose `--task` can be imported."""

from __future__ import annotations

from pathlib import Path

import torch

from btard.audit.files import CONFIG
from btard.harness.settings import read_config
from btard.swarm.task import Training, load_task, ready


def task_of(name: str, folder: Path) -> Training:
    """The task that `name` (module:function) makes of the settings of the swarm in `folder`.

    Sets the run's number of threads: bits depend on it. Errors: ConfigError, and those of the function.
    """
    source = load_task(name)
    config = read_config(source.config, Path(folder) / CONFIG)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return ready(source, config)[0]
