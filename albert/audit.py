"""The task of a peer's run folder, for `python -m btard.audit RUN_DIR`: the run names it."""

from __future__ import annotations

from pathlib import Path

import torch

from albert.config import Config
from albert.data.corpus import Corpus
from albert.task import AlbertTask, make_task
from btard.audit.files import CONFIG
from btard.harness.settings import read_config
from btard.swarm.task import pick_device


def task_of(folder: Path) -> AlbertTask:
    """Return the task as the peer in `folder` had it; its data are read from where the run read them.

    Sets the run's number of threads: bits depend on it. Errors: ConfigError or DataError, both in one line.
    """
    config: Config = read_config(Config, Path(folder) / CONFIG)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return make_task(config, Corpus(config.data.path), pick_device(config.device))
