"""The task of a peer's run folder, for `python -m btard.audit RUN_DIR`: of any swarm whose `--task` can be imported."""

from __future__ import annotations

from pathlib import Path

from btard.harness.recorded import read_recorded, use_threads
from btard.swarm.task import Training, load_task, ready


def task_of(name: str, folder: Path) -> Training:
    """The task that `name` (module:function) makes of the settings of the swarm in `folder`.

    Sets the run's number of threads. What attacked is left out: a class that the folder names is not imported. Errors:
    ConfigError, and those of the function.
    """
    source = load_task(name)
    config = read_recorded(source.config, Path(folder), without=("attack",))
    use_threads(config.threads)
    return ready(source, config)[0]
