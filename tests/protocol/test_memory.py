"""Peers of one process share the results of pure functions. It must make no difference but in time."""

import pytest
import torch

from btard.drivers.local import LocalDriver
from btard.protocol.config import ProtocolConfig
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


@pytest.mark.parametrize("d", [23, 4001])
def test_a_cohort_that_shares_nothing_comes_to_the_same(d: int) -> None:
    def found(memory: Memory) -> list[object]:
        driver = LocalDriver(ProtocolConfig(peers=5, byzantine=1), QuadraticTask(d), memory=memory)
        params = torch.ones(d)
        found: list[object] = []
        for _ in range(3):
            result = driver.step(params)
            params = params - 0.1 * result.gradient
            found += [result.coin, params.tolist(), [peer.last and peer.last.reports for peer in driver.peers.values()]]
        return found

    assert found(Memory()) == found(Memory(remembers=False))
