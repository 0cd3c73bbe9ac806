"""Cohorts in threads of one process know nothing of each other: each comes to what it comes to alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch

from btard.attacks import make_attack
from btard.drivers.local import LocalDriver
from btard.protocol import hashing
from btard.protocol.collusion import Collusion
from btard.protocol.commitments import Hashed
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute, Purpose
from btard.protocol.memory import Memory
from btard.task import QuadraticTask

STEPS = 4


class Together(QuadraticTask):
    """A task whose gradients are only there once all cohorts are in the middle of a step."""

    def __init__(self, d: int, meet: Callable[[], Any]) -> None:
        super().__init__(d)
        self.meet = meet

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **_: Any) -> None:
        if requests[0].purpose is Purpose.TRAIN:
            self.meet()
        super().gradients(params, requests, out)


def hashed(name: str, task: QuadraticTask, **options: Any) -> LocalDriver:
    """Five peers, one of which is caught lying about its gradient, one about its report."""
    collusion = Collusion(frozenset({1, 3}), 7)
    behaviours = {
        1: make_attack("sign_flip", collusion, start=1),
        3: make_attack("misreport", collusion, start=2),
    }
    config = ProtocolConfig(peers=7, byzantine=2, run_id=name)
    return LocalDriver(config, task, behaviours=behaviours, collusion=collusion, **options)


def ideal(name: str, task: QuadraticTask) -> LocalDriver:
    return hashed(name, task, commitments="ideal")


def forgetful(name: str, task: QuadraticTask) -> LocalDriver:
    return hashed(name, task, memory=Memory(remembers=False))


def on_threads(name: str, task: QuadraticTask) -> LocalDriver:
    driver = hashed(name, task)
    for peer in driver.peers.values():
        peer.commitments = Hashed(name, parallel=True)
    return driver


def outcome(make: Callable[..., LocalDriver], meet: Callable[[], Any]) -> list[Any]:
    """All that a cohort says and comes to. Its name is that of its kind, which makes its messages different."""
    driver = make(make.__name__, Together(700, meet))
    params, found = torch.ones(700), []
    for _ in range(STEPS):
        result = driver.step(params)
        params = params - 0.1 * result.gradient
        record = driver.honest[0].last
        assert record is not None
        found += [result.coin, result.removed, result.sent, params.tolist()]
        found += [{i: said.digests for i, said in record.commits.items()}, record.announced]
    assert {entry.accused for entry in driver.honest[0].ledger.entries} >= {3}
    return found


PAIRS = [
    (hashed, hashed),
    (hashed, ideal),
    (ideal, ideal),
    (hashed, forgetful),
    (ideal, on_threads),
    (forgetful, on_threads),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_cohorts_in_threads_of_one_process(
    first: Callable[..., LocalDriver], second: Callable[..., LocalDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_WORTH_THREADS", 64)
    meeting = Barrier(2, timeout=60)
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(outcome, make, meeting.wait) for make in (first, second)]
        together = [cohort.result() for cohort in running]
    assert together == [outcome(make, bool) for make in (first, second)]


def test_all_kinds_of_hashed_cohorts_come_to_the_same_under_one_name() -> None:
    def of(make: Callable[..., LocalDriver]) -> list[Any]:
        return outcome(lambda name, task: make("run", task), bool)

    assert of(hashed) == of(forgetful) == of(on_threads)
