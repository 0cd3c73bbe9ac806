"""Peers of one process share the results of pure functions. It must make no difference but in time."""

import torch

from btard.drivers.local import LocalDriver
from btard.protocol.config import ProtocolConfig
from btard.protocol.memory import nothing_remembered, remembered
from btard.task import QuadraticTask


def test_calls_are_counted() -> None:
    seen = []

    @remembered(8)
    def double(x: int) -> int:
        seen.append(x)
        return 2 * x

    assert [double(3), double(3), double(4)] == [6, 6, 8]
    assert seen == [3, 4]
    with nothing_remembered():
        assert [double(3), double(3)] == [6, 6]
    assert seen == [3, 4, 3, 3]
    assert double(3) == 6 and seen == [3, 4, 3, 3, 3]  # what was remembered before is gone too
    assert double(3) == 6 and len(seen) == 5


def test_a_cohort_that_shares_nothing_comes_to_the_same() -> None:
    def heads() -> list[object]:
        driver = LocalDriver(ProtocolConfig(peers=5, byzantine=1), QuadraticTask(23))
        params = torch.ones(23)
        found: list[object] = []
        for _ in range(3):
            result = driver.step(params)
            params = params - 0.1 * result.gradient
            found += [result.coin, params.tolist()]
        return found

    shared = heads()
    with nothing_remembered():
        assert heads() == shared
