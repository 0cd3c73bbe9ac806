"""Peers in threads come to what they come to one after the other, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from btard.aggregation.threads import kernel_threads
from btard.drivers import local
from btard.drivers.threads import Team
from tests.protocol.matrix import Row, play
from tests.protocol.rows import ROWS

ONE_ROW_PER_ATTACK = list({row.attack: row for row in reversed(ROWS)}.values())


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("row", ONE_ROW_PER_ATTACK, ids=str)
def test_every_attack_ends_as_without_threads(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one, _ = play(row, 1)
    assert one_by_one.driver._team is None
    monkeypatch.setattr(local, "THREADED_FROM", 1)
    together, _ = play(row, 1)
    assert together.driver._team is not None
    assert together.entries == one_by_one.entries
    assert torch.equal(together.params, one_by_one.params)


@pytest.mark.usefixtures("three_threads")
def test_a_team_works_at_the_same_time_on_one_kernel_thread_each() -> None:
    team, meeting = Team(3), threading.Barrier(3, timeout=30)

    def work(item: int) -> tuple[int, int]:
        meeting.wait()  # passes only if three of them are here at once
        return item, torch.get_num_threads()

    assert team.map(work, range(6)) == [(item, 1) for item in range(6)]
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError):
        team.map(lambda item: 1 // item, [1, 0, 2])
    team.close()


@pytest.mark.usefixtures("three_threads")
def test_kernel_threads_are_set_for_a_while() -> None:
    with kernel_threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
