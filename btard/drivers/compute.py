"""Answers the gradient requests of a cohort in one process, all requests of a phase together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from btard.drivers.history import ParameterHistory
from btard.protocol.effects import Compute, Purpose
from btard.task import Task

Mode = Literal["batched", "per_peer"]

Key = tuple[int, int, bytes, bool]


def key_of(request: Compute) -> Key:
    """A gradient is a function only of these."""
    return request.step, request.peer, request.seed, request.flip_labels


class CohortCompute:
    """Gradients of many peers at once, by `mode`:

    - `batched`: one call of the task for all; a validator's request for a gradient of the step before is answered
      from what was computed then, because in another batch the last bits could differ and convict the innocent.
      A gradient is a pure function, so remembering it changes nothing but the cost.
    - `per_peer`: nothing is remembered across steps, validators and judges really recompute. Needs a task whose
      rows do not depend, to the bit, on which other requests are in the call.

    `tasks` (peer -> Task) are for peers that compute with numerics of their own; each such task is batched and
    remembered apart from the others, so that nobody is answered with what another kind of machine computed.

    Memory: two buffers [n, d], this step's gradients and the last step's, which aggregators still hold as evidence.
    Errors: ValueError for an unknown mode and for a task of another number of parameters.
    """

    def __init__(
        self, task: Task, history: ParameterHistory, mode: Mode, tasks: Mapping[int, Task] | None = None
    ) -> None:
        if mode not in ("batched", "per_peer"):
            raise ValueError(f"mode must be 'batched' or 'per_peer', got {mode!r}")
        self.task, self.history, self.mode = task, history, mode
        self.memory: dict[Key, torch.Tensor] = {}
        self._buffers: list[torch.Tensor] = []
        self.others: dict[int, CohortCompute] = {}
        """Peer -> the object that answers it instead of this one; the same for peers with the same task."""
        made: dict[int, CohortCompute] = {id(task): self}
        for peer, own in (tasks or {}).items():
            if own.d != task.d:
                raise ValueError(f"the task of peer {peer} has {own.d} parameters, the cohort's has {task.d}")
            if id(own) not in made:
                made[id(own)] = CohortCompute(own, history, mode)
            self.others[peer] = made[id(own)]

    def answer(self, now: int, requests: Sequence[Compute], askers: Sequence[int] | None = None) -> list[torch.Tensor]:
        """The gradient [d] of each request, in order, at step `now`; equal requests to one task share a tensor.

        `askers`: who computes each of them, by default peers with the common task.
        """
        if not self.others or askers is None:
            return self._answer(now, requests)
        answers: dict[int, torch.Tensor] = {}
        computing = [self.others.get(asker, self) for asker in askers]
        for compute in dict.fromkeys(computing):
            mine = [i for i, responsible in enumerate(computing) if responsible is compute]
            answers |= dict(zip(mine, compute._answer(now, [requests[i] for i in mine]), strict=True))
        return [answers[i] for i in range(len(requests))]

    def _answer(self, now: int, requests: Sequence[Compute]) -> list[torch.Tensor]:
        wanted = {key_of(request): request for request in requests}
        known = {key: self.memory[key] for key in wanted if key in self.memory} if self.mode == "batched" else {}
        todo = [request for key, request in wanted.items() if key not in known]
        train = [request for request in todo if request.purpose is Purpose.TRAIN]
        if train:
            self.memory = {key: row for key, row in self.memory.items() if key[0] >= now - 1}
            rows = self._buffer(now, len(train))
            self._compute(now, train, rows)
            known |= {key_of(request): row for request, row in zip(train, rows, strict=True)}
            if self.mode == "batched":
                self.memory |= {key: row for key, row in known.items() if key[0] == now}
        rest = [request for request in todo if request.purpose is not Purpose.TRAIN]
        if rest:
            rows = torch.empty(len(rest), self.task.d, device=self._device(now))
            self._compute(now, rest, rows)
            known |= {key_of(request): row for request, row in zip(rest, rows, strict=True)}
        return [known[key_of(request)] for request in requests]

    def state(self) -> tuple[list[list[int | str | bool]], dict[str, torch.Tensor]]:
        """What is remembered of the last step, as JSON values and tensors."""
        keys: list[list[int | str | bool]] = []
        rows: dict[str, torch.Tensor] = {}
        for index, compute in enumerate(self._all()):
            for (step, peer, seed, flipped), row in compute.memory.items():
                rows[f"memory/{len(keys)}"] = row
                keys.append([step, peer, seed.hex(), flipped, index])
        return keys, rows

    def restore(self, keys: Sequence[Sequence[Any]], tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state` returned."""
        computes = self._all()
        for compute in computes:
            compute.memory = {}
        for row, (step, peer, seed, flipped, index) in enumerate(keys):
            computes[index].memory[step, peer, bytes.fromhex(seed), flipped] = tensors[f"memory/{row}"]

    def _all(self) -> list[CohortCompute]:
        """This object and those for other numerics, in the order of the peers that brought them."""
        return list(dict.fromkeys([self, *self.others.values()]))

    def _compute(self, now: int, requests: list[Compute], out: torch.Tensor) -> None:
        """Fill `out` [r, d], one call of the task per requested step; rows that are not adjacent cost a copy."""
        for step in sorted({request.step for request in requests}):
            index = [i for i, request in enumerate(requests) if request.step == step]
            params, workers = self.history.at(step, now), self.history.sharing(step, now)
            if index == list(range(index[0], index[-1] + 1)):
                rows = out[index[0] : index[-1] + 1]
                self.task.gradients(params, [requests[i] for i in index], rows, workers=workers)
            else:
                rows = torch.empty(len(index), self.task.d, device=out.device)
                self.task.gradients(params, [requests[i] for i in index], rows, workers=workers)
                out[index] = rows

    def _device(self, now: int) -> torch.device:
        return self.history.at(now, now).device

    def _buffer(self, now: int, rows: int) -> torch.Tensor:
        """Rows for this step's gradients. Two buffers take turns: the last step's parts are still evidence."""
        if not self._buffers or self._buffers[0].shape[0] < rows:
            device = self._device(now)
            self._buffers = [torch.empty(rows, self.task.d, device=device) for _ in range(2)]
        return self._buffers[now % 2][:rows]
