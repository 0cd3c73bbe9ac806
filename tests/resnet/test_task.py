"""The classification task refuses peers that it was not made for, instead of an error from deep inside an index."""

from __future__ import annotations

import pytest
import torch

from btard.protocol.effects import Compute, Purpose
from btard.training.vector import flatten
from resnet.data import load_dataset
from resnet.model import resnet18
from resnet.sampling import TrainingData
from resnet.task import ClassificationTask


def test_a_peer_beyond_those_the_task_was_made_for_is_named() -> None:
    model = resnet18(width=2, channels=1)
    task = ClassificationTask(model, TrainingData(load_dataset("digits")), peers=2, batch_size=2, mode="per_peer")
    out = torch.empty(1, task.d)
    with pytest.raises(ValueError, match="peer 2 has no running statistics, the task was made for 2 peers"):
        task.gradients(flatten(model), [Compute(0, 2, bytes(32))], out)
    task.gradients(flatten(model), [Compute(0, 2, bytes(32), Purpose.VALIDATE)], out)  # recomputing needs none
