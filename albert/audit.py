"""The task of a peer's run folder, for `python -m btard.audit RUN_DIR`: the run names it."""

from __future__ import annotations

from pathlib import Path

from albert.config import Config
from albert.data.corpus import Corpus
from albert.model import outline
from albert.task import AlbertTask, make_task
from btard.audit.settings import check_size
from btard.harness.recorded import read_recorded, use_threads
from btard.swarm.task import pick_device
from btard.training.vector import parameter_count


def task_of(folder: Path) -> AlbertTask:
    """Return the task as the peer in `folder` had it; its data are read from where the run read them.

    Sets the run's number of threads: bits depend on it. What attacked is left out: a class that the folder names is not
    imported. Errors: ConfigError or DataError, both in one line; ValueError for a model of another size than the run's,
    before it is made.
    """
    config: Config = read_recorded(Config, Path(folder), without=("attack",))
    use_threads(config.threads)
    corpus = Corpus(config.data.path)
    check_size(folder, parameter_count(outline(config.model, corpus.vocab_size, corpus.sequence_length)))
    return make_task(config, corpus, pick_device(config.device))
