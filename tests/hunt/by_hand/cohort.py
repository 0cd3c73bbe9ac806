"""What the attacks made by hand have in common: a cohort that plays them, and what breaks in its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour
from btard.protocol.commit import CutOff
from btard.protocol.config import ProtocolConfig
from btard.task import QuadraticTask
from tests.protocol.promises import D

LARGEST = 30.0
"""No honest gradient of these cohorts has a larger entry."""


def cohort(behaviours: Mapping[int, Behaviour], **settings: Any) -> LocalDriver:
    tasks, task = settings.pop("tasks", None), settings.pop("task", QuadraticTask(D))
    links = settings.pop("links", None)
    byzantine = sum(behaviour.byzantine for behaviour in behaviours.values())
    config = ProtocolConfig(**{"peers": 5, "byzantine": byzantine, "run_id": "by hand", **settings})
    return LocalDriver(config, task, behaviours=behaviours, tasks=tasks, links=links)


def damage(driver: LocalDriver, steps: int, *, cut_off: str = "") -> str:
    """What breaks in so many steps; "" if nothing does. Who is cut off takes the others' state, which is no break.

    `cut_off`: what it is called where everybody is there, and nobody may be cut off.
    """
    honest = {peer.id for peer in driver.honest}
    params = torch.ones(D)
    for _ in range(steps):
        try:
            result = driver.step(params)
        except CutOff:
            return cut_off
        except RuntimeError as error:
            return str(error)
        except Exception as error:
            return f"crash: {type(error).__name__}: {error}"
        for entry in result.removed:
            if honest & set(entry.peers) and not (entry.verdict == "eliminated" and len(entry.peers) == 2):
                return f"honest peers {sorted(honest & set(entry.peers))} removed: {entry.kind}"
        lost = honest.intersection(result.active) - driver.peers.keys()
        if lost:
            return f"honest peers {sorted(lost)} came to another end of the step"
        if float(result.gradient.abs().max()) > LARGEST:
            return f"{result.gradient.abs().max():g} applied"
        for peer in driver.honest:
            record = peer.last
            if record is not None and not set(record.announced) <= record.skipped | set(record.aggregates):
                return f"peer {peer.id} has other parameters"
        params = params - 0.1 * result.gradient
    return ""
