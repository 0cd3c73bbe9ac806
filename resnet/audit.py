"""The task of a run folder, for `python -m btard.audit RUN_DIR`: the run names it."""

from __future__ import annotations

from pathlib import Path

import torch

from btard.audit.files import CONFIG
from resnet.cohort import make_model, make_task
from resnet.config import read_config
from resnet.data import load_dataset
from resnet.task import ClassificationTask
from resnet.train import knowing


def task_of(folder: Path) -> ClassificationTask:
    """Return the task as the run in `folder` had it, on the CPU; its data are read from where the run read them.

    Sets the run's number of threads: bits depend on it. Raises ConfigError or DataError, both in one line.
    """
    config = read_config(Path(folder) / CONFIG)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data = load_dataset(config.data.name, config.data.path, label=config.data.label)
    knowing(config, data)
    return make_task(config, data, make_model(config, data))
