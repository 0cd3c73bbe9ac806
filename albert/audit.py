"""The task of a peer's run folder, for `python -m btard.audit RUN_DIR --task albert.audit:task_of`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from albert.config import Config
from albert.data.corpus import Corpus
from albert.task import AlbertTask
from btard.harness.settings import read_config
from btard.protocol.effects import Compute
from btard.swarm.startup import make_task, pick_device


@dataclass(frozen=True)
class AuditedTask:
    """The gradients of a run, with as many workers as the step in question had: they share its sequences."""

    task: AlbertTask
    workers: int = 1

    @property
    def d(self) -> int:
        """Number of parameters."""
        return self.task.d

    def among(self, workers: int) -> AuditedTask:
        """Return the task of a step that so many workers share."""
        return replace(self, workers=workers)

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor) -> None:
        """Write the gradient of each request at `params` [d] into the rows of `out` [len(requests), d], float32."""
        for request, row in zip(requests, out, strict=True):
            gradient = self.task.gradient(params.to(self.task.device), request, self.workers)
            assert gradient is not None, "it is never too late for an audit"
            row.copy_(gradient)


def task_of(folder: Path) -> AuditedTask:
    """Return the task as the peer in `folder` had it; its data are found where the run found them.

    Sets the run's number of threads: bits depend on it. Errors: ConfigError or DataError, both in one line.
    """
    config: Config = read_config(Config, Path(folder) / "config.yaml")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    return AuditedTask(make_task(config, Corpus(config.data.path), pick_device(config.device)))
