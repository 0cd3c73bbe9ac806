"""What gradients of past steps depend on, for validators (one step back) and for attackers that send stale ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from btard.boundary import Mistake
from btard.protocol.behaviour import Behaviour
from btard.protocol.record import StepRecord
from btard.task import sharing


def steps_kept(behaviours: Mapping[int, Behaviour], repeatable: int) -> int:
    """How many steps of parameters a cohort needs: two for validators, more if an attack looks farther back.

    `repeatable`: steps that a resumed run may repeat; their overwriting must not reach what the repetition needs.
    """
    lookback = max((behaviour.lookback for behaviour in behaviours.values()), default=1)
    return 2 if lookback <= 1 else 1 + lookback + repeatable


class Lost(Mistake, LookupError):
    """The file lacks a step that it should have."""


class ParameterHistory:
    """x^t of the last `keep` steps, [d] each, and how many peers shared the batches of each step.

    Short histories stay in memory on the device. Long ones (a thousand steps of a large model) go to a ring in a
    memory-mapped file in `folder`, which the operating system pages out and which survives an interruption. Each of its
    rows ends with the number of its step, so that a file that was lost, cut or older is noticed.
    """

    IN_MEMORY = 8

    def __init__(self, d: int, keep: int, folder: Path | None = None) -> None:
        """Errors: ValueError for a long history without a folder to put it into."""
        if keep > self.IN_MEMORY and folder is None:
            raise ValueError(f"a history of {keep} steps is kept in a file: give the folder")
        self.keep = keep
        self.workers: dict[int, int] = {}
        """Step -> how many peers were supposed to work in it."""
        self._recent: dict[int, torch.Tensor] = {}
        self._ring: np.memmap | None = None
        if keep > self.IN_MEMORY and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "parameters.f32"
            kept = path.exists() and path.stat().st_size == keep * (d + 1) * 4
            self._ring = np.memmap(path, dtype=np.float32, mode="r+" if kept else "w+", shape=(keep, d + 1))
            self._path = path

    def record(self, step: int, params: torch.Tensor, workers: int, *, deep: bool = True) -> None:
        """Remember `params` [d] (copied) as x^step; without `deep` only as long as a validator may need it.

        `workers` peers share the step.
        """
        self.workers = {s: count for s, count in self.workers.items() if s > step - self.keep} | {step: workers}
        self._remember(step, params, deep)

    def _remember(self, step: int, params: torch.Tensor, deep: bool) -> None:
        if self._ring is not None and deep:
            self._ring[step % self.keep, :-1] = params.detach().cpu().numpy()
            self._ring[step % self.keep, -1] = _tag(step)
        outdated = [s for s in self._recent if s <= step - min(self.keep, self.IN_MEMORY)]
        freed = [self._recent.pop(old) for old in outdated]
        # Into memory that is there already: a fresh page costs more than copying it.
        room = freed[0] if freed and freed[0].device == params.device else torch.empty_like(params)
        self._recent[step] = room.copy_(params.detach())

    def at(self, step: int, now: int) -> torch.Tensor:
        """x^step [d], where `now` is the latest step recorded; LookupError if it is no longer kept, or Lost."""
        if step in self._recent:
            return self._recent[step]
        if self._ring is None or not now - self.keep < step <= now:
            raise LookupError(f"the parameters of step {step} are gone: at step {now} the last {self.keep} are kept")
        if self._ring[step % self.keep, -1] != _tag(step):
            raise Lost(
                f"{self._path}: lacks the parameters of step {step}, which attackers send again; copy the run folder "
                "again as a whole, or delete it to start again"
            )
        like = self._recent[now]
        return torch.from_numpy(np.array(self._ring[step % self.keep, :-1])).to(like.device)

    def sharing(self, step: int, now: int) -> int:
        """How many peers shared `step`; as many as now if that is no longer known."""
        return self.workers.get(step, self.workers[now])

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold; the file keeps the rest."""
        return {f"history/{step}": params for step, params in self._recent.items()}

    def restore(self, state: Mapping[str, torch.Tensor], workers: Mapping[int, int]) -> None:
        """Restore what `state` returned, from among other tensors, and the known `workers` of past steps."""
        self.workers = dict(workers)
        recent = {int(name.split("/")[1]): params for name, params in state.items() if name.startswith("history/")}
        for step in sorted(recent):
            self._remember(step, recent[step], deep=True)


def _tag(step: int) -> float:
    """The number of a step as float32 has it exactly; 0 is none."""
    return float(step % 2**24 + 1)


def workers_of(last: StepRecord | None) -> dict[int, int]:
    """Step -> how many peers were supposed to work in it, for the step before."""
    return {} if last is None else {last.step: sharing(last.active, last.assignments)}
