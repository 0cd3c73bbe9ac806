"""Answers the gradient requests of a cohort in one process, all of a phase together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from btard.drivers.history import ParameterHistory
from btard.drivers.task import Task
from btard.protocol.effects import Compute, Purpose

Mode = Literal["batched", "per_peer"]

Key = tuple[int, int, bytes, bool]


def key_of(request: Compute) -> Key:
    """A gradient is a function of these alone."""
    return request.step, request.peer, request.seed, request.flip_labels


class CohortCompute:
    """Gradients of many peers at once, by `mode`:

    - `batched`: one call of the task for all; a validator's request for a gradient of the step before is answered
      from what was computed then, because in another batch the last bits could differ and convict the innocent.
      A gradient is a pure function, so remembering it changes nothing but the cost.
    - `per_peer`: nothing is remembered across steps, validators and judges really recompute. Needs a task whose
      rows do not depend, to the bit, on which other requests are in the call.

    Memory: two buffers [n, d], this step's gradients and the last step's, which aggregators still hold as evidence.
    """

    def __init__(self, task: Task, history: ParameterHistory, mode: Mode) -> None:
        if mode not in ("batched", "per_peer"):
            raise ValueError(f"mode must be 'batched' or 'per_peer', got {mode!r}")
        self.task, self.history, self.mode = task, history, mode
        self.memory: dict[Key, torch.Tensor] = {}
        self._buffers: list[torch.Tensor] = []

    def answer(self, now: int, requests: Sequence[Compute]) -> list[torch.Tensor]:
        """The gradient [d] of each request, in order, at step `now`; equal requests share one tensor."""
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
        keys: list[list[int | str | bool]] = [
            [step, peer, seed.hex(), flipped] for step, peer, seed, flipped in self.memory
        ]
        return keys, {f"memory/{index}": row for index, row in enumerate(self.memory.values())}

    def restore(self, keys: Sequence[Sequence[Any]], tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state` returned."""
        self.memory = {
            (step, peer, bytes.fromhex(seed), flipped): tensors[f"memory/{index}"]
            for index, (step, peer, seed, flipped) in enumerate(keys)
        }

    def _compute(self, now: int, requests: list[Compute], out: torch.Tensor) -> None:
        """Fill `out` [r, d], one call of the task per step that is asked for; rows that lie apart cost a copy."""
        for step in sorted({request.step for request in requests}):
            index = [i for i, request in enumerate(requests) if request.step == step]
            params = self.history.at(step, now)
            if index == list(range(index[0], index[-1] + 1)):
                self.task.gradients(params, [requests[i] for i in index], out[index[0] : index[-1] + 1])
            else:
                rows = torch.empty(len(index), self.task.d, device=out.device)
                self.task.gradients(params, [requests[i] for i in index], rows)
                out[index] = rows

    def _device(self, now: int) -> torch.device:
        return self.history.at(now, now).device

    def _buffer(self, now: int, rows: int) -> torch.Tensor:
        """Rows for this step's gradients. Two buffers take turns: the last step's parts are still evidence."""
        if not self._buffers or self._buffers[0].shape[0] < rows:
            device = self._device(now)
            self._buffers = [torch.empty(rows, self.task.d, device=device) for _ in range(2)]
        return self._buffers[now % 2][:rows]
