"""Liars that say to each honest peer that they are in its life split no common restart, whatever they tell whom."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from btard.swarm import arrival
from btard.swarm.founding import NoFounders
from btard.swarm.life import OVERDUE, SETTLED, Life

STORED = (950, 1000)


class Swarm:
    """Honest members, by group, and liars that have a nonce of their own for each group.

    A liar asks whoever asks it for its status first, and says that it sees the same life. `disks`: what the liars say
    to each group that they have. `holds`: they hold their answers until all honest peers have asked, so that these go
    on at the same time. `wait`: deadlines.gather in seconds.
    """

    def __init__(
        self, groups: Sequence[Sequence[int]], liars: int, wait: float, disks: Sequence[Sequence[int]] = ()
    ) -> None:
        self.group = {member: number for number, group in enumerate(groups) for member in group}
        count = len(self.group) + liars
        self.liars, self.disks = range(len(self.group), count), disks
        self.members = {
            number: SimpleNamespace(
                state="starting",
                peer=SimpleNamespace(id=number),
                members=dict.fromkeys(range(count), b""),
                life=Life(number, count, liars),
                tolerated=liars,
                stored=dict.fromkeys(STORED),
                passed=STORED[:1],
                first=0,
                config=SimpleNamespace(peers=count, deadlines=SimpleNamespace(gather=wait)),
                say=lambda line: None,
                begin_life=lambda step: None,
            )
            for number in self.group
        }
        self._together = threading.Barrier(len(self.group))

    def _status(self, member: Any) -> dict[str, Any]:
        stored = [0, *member.stored]
        return {"state": member.state, "stored": stored, "passed": [*member.passed], **member.life.told()}

    def _lie(self, liar: int, asker: int) -> dict[str, Any]:
        group, asks = self.group[asker], self._status(self.members[asker])
        waiting = all(member.state in (OVERDUE, *arrival.DECIDED) for member in self.members.values())
        if waiting and liar == self.liars[0]:
            with contextlib.suppress(threading.BrokenBarrierError):  # some have begun
                self._together.wait(0.2)
        face = 0 if self.disks else group
        nonces = {str(other): f"{other:016x}{face:016x}" for other in self.liars}
        disk = [0, *(self.disks[group] if self.disks else STORED)]
        return {
            "state": SETTLED if waiting else "ready",
            "stored": disk,
            "passed": disk,
            "nonce": nonces[str(liar)],
            "heard": {str(i): member.life.nonce.hex() for i, member in self.members.items()} | nonces,
            "gathered": asks["gathered"],
            "begin": asks["begin"],
        }

    def ask_all(self, asking: Any) -> dict[int, dict[str, Any]]:
        me = asking.peer.id
        said = {i: self._status(other) for i, other in self.members.items() if i != me}
        return said | {liar: self._lie(liar, me) for liar in self.liars}

    def begun(self) -> dict[int, tuple[int, bytes]]:
        """Honest member -> the life that it begins; those that begin none are missing."""

        def arrive(member: Any) -> tuple[int, bytes] | None:
            try:
                arrival._gather(member)
            except NoFounders:
                return None
            return member.life.begin, member.life.epoch("run", b"")

        with ThreadPoolExecutor(len(self.members)) as pool:
            ends = dict(zip(self.members, pool.map(arrive, self.members.values()), strict=True))
        return {member: life for member, life in ends.items() if life is not None}


@pytest.mark.parametrize(
    ("groups", "liars", "disks"),
    [
        ([[0, 1], [2, 3]], 1, []),
        ([[0, 1], [2]], 1, []),
        ([[0, 1], [2, 3], [4, 5], [6, 7, 8]], 7, []),
        ([[0, 1], [2, 3, 4, 5, 6, 7, 8]], 7, []),
        ([[0, 1], [2, 3, 4, 5, 6, 7, 8]], 7, [STORED, STORED[:1]]),
        ([[0, 1, 2, 3], [4, 5, 6, 7, 8]], 7, [STORED, STORED[:1]]),
    ],
)
@pytest.mark.parametrize("wait", [0.1, 0.5])
def test_no_two_lives_begin(
    groups: Sequence[Sequence[int]],
    liars: int,
    disks: Sequence[Sequence[int]],
    wait: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swarm = Swarm(groups, liars, wait, disks)
    monkeypatch.setattr(arrival, "ask_all", swarm.ask_all)
    monkeypatch.setattr(arrival, "POLL", 0.002)
    monkeypatch.setattr(arrival, "GRACE", 0.2)
    begun = swarm.begun()
    assert len({*begun.values()}) <= 1, begun


def test_silent_liars_keep_nobody_from_beginning_where_the_others_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 7 peers of which 2 may lie, 5 are; with 16 of which 7 may lie, 9 are not, and say so."""
    for honest, liars in ((5, 2), (9, 7)):
        swarm = Swarm([range(honest)], liars, 0.1)
        swarm.liars = range(0)
        monkeypatch.setattr(arrival, "ask_all", swarm.ask_all)
        monkeypatch.setattr(arrival, "POLL", 0.002)
        begun = swarm.begun()
        assert len(begun) == (honest if liars == 2 else 0) and len({*begun.values()}) <= 1


def test_who_has_settled_follows_what_has_begun_and_nothing_else() -> None:
    """So a liar that changes its word when some have settled moves nobody that they count on."""
    lives = [Life(number, 5, 1) for number in range(5)]
    for _ in range(3):
        told = {life.me: {"state": "ready", **life.told()} for life in lives}
        for life in lives:
            life.hear({i: said for i, said in told.items() if i != life.me})
    mine = dict(lives[0].gathered)
    lives[0].settled = True
    other = {**told[1], "gathered": {**told[1]["gathered"], "4": "00" * 16}, "heard": {"4": "00" * 16}}
    for state in ("ready", SETTLED):
        lives[0].hear({i: {**other, "nonce": told[i]["nonce"], "state": state} for i in range(1, 5)})
        assert lives[0].gathered == mine
    lives[0].hear({i: {**other, "state": "running"} for i in (1, 2)})
    assert lives[0].gathered[4] == bytes(16)
