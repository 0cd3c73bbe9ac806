"""The task of a run folder, for `python -m btard.audit RUN_DIR`: the run names it."""

from __future__ import annotations

from pathlib import Path

from btard.audit.settings import check_size
from btard.harness.recorded import read_recorded, use_threads
from btard.training.vector import parameter_count
from resnet.cohort import make_model, make_task
from resnet.config import Config
from resnet.data import load_dataset
from resnet.model import outline
from resnet.task import ClassificationTask
from resnet.training import knowing

WITHOUT = ("aggregator", "attack", "byzantine", "peers", "protocol")
"""What a gradient does not depend on. Attack and rule may be anybody's class, and the folder anybody's."""


def task_of(folder: Path) -> ClassificationTask:
    """Return the task as the run in `folder` had it, on the CPU; its data are read from where the run read them.

    Sets the run's number of threads: bits depend on it. Downloads nothing. Raises ConfigError or DataError, both in one
    line, and ValueError for a network of another size than the run's, before it is made.
    """
    config = read_recorded(Config, Path(folder), without=WITHOUT)
    use_threads(config.threads)
    data = load_dataset(config.data.name, config.data.path, label=config.data.label, download=False)
    knowing(config, data)
    check_size(folder, parameter_count(outline(config.model.width, data.classes, data.channels)))
    return make_task(config, data, make_model(config, data))
