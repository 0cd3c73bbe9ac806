"""What the attacks made by hand have in common: an attacker, a peer that is away, and what breaks in a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.commit import CutOff
from btard.protocol.config import ProtocolConfig
from btard.protocol.messages import Signed
from btard.task import QuadraticTask

D = 60
LARGEST = 30.0
"""No honest gradient of these cohorts has a larger entry."""


class Attacker(Behaviour):
    """Byzantine from step 1 on."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step >= 1

    @property
    def resting(self) -> Behaviour:
        rested = Behaviour()
        rested.byzantine = True
        return rested


class Away(Behaviour):
    """An honest peer that nobody hears in the steps in which `when` holds."""

    def __init__(self, when: Callable[[Context], bool]) -> None:
        self.when = when

    def acts(self, ctx: Any) -> bool:
        return self.when(ctx)

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return None, {}

    def dispatch(self, ctx: Context, phase: str, packets: Any) -> Any:
        return {}


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
