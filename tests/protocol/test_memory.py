"""Peers of one process share the results of pure functions. It must make no difference but in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.ledger import Entry
from btard.protocol.memory import Memory, remembered
from btard.task import QuadraticTask


def test_a_memory_evaluates_once_and_another_memory_knows_nothing_of_it() -> None:
    seen = []

    @remembered(8)
    def double(x: int) -> int:
        seen.append(x)
        return 2 * x

    memory, other, nothing = Memory(), Memory(), Memory(remembers=False)
    assert [memory(double, 3), memory(double, 3), memory(double, 4)] == [6, 6, 8]
    assert seen == [3, 4]
    assert [nothing(double, 3), nothing(double, 3), double(3)] == [6, 6, 6]
    assert seen == [3, 4, 3, 3, 3]
    assert [other(double, 3), other(double, 3), memory(double, 3)] == [6, 6, 6]
    assert seen == [3, 4, 3, 3, 3, 3]


def test_a_memory_keeps_the_last_results_of_each_function() -> None:
    seen = []

    @remembered(2)
    def same(x: int) -> int:
        seen.append(x)
        return x

    memory = Memory()
    for x in (1, 2, 3, 3, 1):
        assert memory(same, x) == x
    assert seen == [1, 2, 3, 1]


class SometimesNaN(QuadraticTask):
    """One worker after the other has no finite gradient."""

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        super().gradients(params, requests, out)
        for request, row in zip(requests, out, strict=True):
            if request.step % 5 == request.peer:
                row[-1] = float("nan")


@pytest.mark.parametrize("settings", [{}, {"tau": 1e-30}, {"tau": math.inf}, {"wire": "float16"}, {"tau": "auto"}])
@pytest.mark.parametrize("task", [QuadraticTask, SometimesNaN])
@pytest.mark.parametrize("d", [23, 4001])  # one part is longer than others
def test_a_cohort_that_shares_nothing_comes_to_the_same(d: int, task: Any, settings: dict[str, Any]) -> None:
    def found(memory: Memory) -> list[object]:
        driver = LocalDriver(ProtocolConfig(peers=5, byzantine=1, **settings), task(d), memory=memory)
        params = torch.ones(d)
        found: list[object] = []
        for _ in range(3):
            result = driver.step(params)
            params = params - 0.1 * result.gradient
            found += [result.coin, params.tolist(), [peer.last and peer.last.reports for peer in driver.peers.values()]]
        return found

    assert found(Memory()) == found(Memory(remembers=False))


class Scribbler(Behaviour):
    """Sends some owners another part than it has committed to, written where its own part lies and undone later."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step >= 1

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        self.whole = gradient.clone()
        return self.whole

    def part(self, ctx: Context, part: int, body: torch.Tensor) -> torch.Tensor:
        return body.clone() if part == len(ctx.record.owners) - 1 else body

    def dispatch(self, ctx: Context, phase: str, packets: Any) -> Any:
        if phase == "part":  # what all have heard stays what it was: only what a cohort would guess from it is wrong
            self.whole.numpy()[-1] += 1
        return packets


def test_what_an_owner_clips_is_what_came_to_it() -> None:
    def run(memory: Memory) -> tuple[list[Entry], list[float]]:
        driver = LocalDriver(
            ProtocolConfig(peers=5, byzantine=1, validators=0),
            QuadraticTask(23),
            behaviours={1: Scribbler()},
            memory=memory,
        )
        results = [driver.step(torch.ones(23)) for _ in range(2)]
        return [entry for result in results for entry in result.removed], results[1].gradient.tolist()

    assert run(Memory()) == run(Memory(remembers=False))
