"""Liars that say to each honest peer that they are in its life split no common restart, whatever they tell whom."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from btard.protocol.identity import Identity
from btard.swarm import arrival
from btard.swarm.founding import NoFounders
from btard.swarm.life import OVERDUE, SETTLED, Life, said_of
from tests.swarm.points import at, told

STORED = (950, 1000)


class Swarm:
    """Honest members, by group, and liars that have a nonce of their own for each group.

    A liar asks whoever asks it for its status first, says that it sees the same life, and signs it. `disks`: what the
    liars say to each group that they have. `sign`: whom they show signatures. `running`: honest members in `step` of
    the life before. `wait`: deadlines.gather in seconds.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[int]],
        liars: int,
        wait: float,
        disks: Sequence[Sequence[int]] = (),
        sign: Collection[int] | None = None,
        running: int = 0,
        step: int = 0,
    ) -> None:
        self.group = {member: number for number, group in enumerate(groups) for member in group}
        count = len(self.group) + running + liars
        self.liars, self.disks, self.sign = range(len(self.group), len(self.group) + liars), disks, sign
        self.running, self.step = range(count - running, count), step
        self.identities = [Identity.from_seed("lies", number) for number in range(count)]
        self.members = {
            number: SimpleNamespace(
                state="starting",
                identity=self.identities[number],
                peer=SimpleNamespace(id=number),
                members={i: identity.public_key for i, identity in enumerate(self.identities)},
                life=Life(number, count, liars),
                tolerated=liars,
                points=at(0, *STORED),
                passed=at(*STORED[:1]),
                first=0,
                config=SimpleNamespace(peers=count, run_id="run", deadlines=SimpleNamespace(gather=wait)),
                say=lambda line: None,
                begin_life=lambda: None,
            )
            for number in self.group
        }
        self._together = threading.Barrier(len(self.group))

    def _status(self, member: Any) -> dict[str, Any]:
        stored, passed = said_of(member.points), said_of(member.passed)
        return {"state": member.state, "stored": stored, "passed": passed, **member.life.told()}

    def _signatures(self, asking: Any) -> dict[str, str]:
        """Of all liars, on what the asking peer sees, with those that it has itself."""
        found = dict(asking.life.told()["settled"])
        for liar in self.liars:
            life = Life(liar, 1, 0)
            life.gathered, life.begin = dict(asking.life.gathered), asking.life.begin
            life.settle(self.identities[liar], "run")
            found |= life.told()["settled"]
        return found

    def _lie(self, liar: int, asker: int) -> dict[str, Any]:
        group, asks = self.group[asker], self._status(self.members[asker])
        waiting = all(member.state in (OVERDUE, SETTLED, *arrival.BEGUN) for member in self.members.values())
        if waiting and liar == self.liars[0]:
            with contextlib.suppress(threading.BrokenBarrierError):  # some have begun
                self._together.wait(0.2)
        face = 0 if self.disks else group
        nonces = {str(other): f"{other:016x}{face:016x}" for other in self.liars}
        disk = told(0, *(self.disks[group] if self.disks else STORED))
        signs = waiting and (self.sign is None or asker in self.sign)
        return {
            "state": SETTLED if waiting else "ready",
            "stored": disk,
            "passed": disk,
            "nonce": nonces[str(liar)],
            "heard": {str(i): member.life.nonce.hex() for i, member in self.members.items()} | nonces,
            "gathered": asks["gathered"],
            "begin": asks["begin"],
            "settled": self._signatures(self.members[asker]) if signs else {},
        }

    def ask_all(self, asking: Any) -> dict[int, dict[str, Any]]:
        me = asking.peer.id
        said = {i: self._status(other) for i, other in self.members.items() if i != me}
        said |= {liar: self._lie(liar, me) for liar in self.liars}
        return said | {i: {"state": "running", "step": self.step, "stored": told(0)} for i in self.running}

    def begun(self) -> dict[int, tuple[Any, bytes]]:
        """Honest member -> the life that it begins; those that begin none are missing."""

        def arrive(member: Any) -> tuple[Any, bytes] | None:
            try:
                arrival._gather(member)
            except NoFounders:
                return None
            return member.life.begin, member.life.epoch("run", b"")

        with ThreadPoolExecutor(len(self.members)) as pool:
            ends = dict(zip(self.members, pool.map(arrive, self.members.values()), strict=True))
        return {member: life for member, life in ends.items() if life is not None}


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("POLL", 0.002), ("GRACE", 0.2), ("SHOWN", 0.5)):
        monkeypatch.setattr(arrival, name, seconds)


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
    begun = swarm.begun()
    assert len({*begun.values()}) <= 1, begun


@pytest.mark.parametrize(("honest", "liars"), [(9, 7), (3, 2), (5, 2)])
@pytest.mark.parametrize("wait", [0.1, 0.5])
def test_liars_do_not_choose_who_begins(honest: int, liars: int, wait: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """They show their signatures to two alone: these show them to all."""
    swarm = Swarm([range(honest)], liars, wait, sign={0, 1})
    monkeypatch.setattr(arrival, "ask_all", swarm.ask_all)
    begun = swarm.begun()
    assert {*begun} == {*range(honest)} and len({*begun.values()}) == 1


@pytest.mark.parametrize("step", [STORED[-1], STORED[-1] + 5])
def test_nobody_begins_beside_a_life_that_goes_on(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 13 peers 6 have stopped and are there again, 4 go on, and 3 liars say to the 6 that they have stopped, too."""
    swarm = Swarm([range(6)], 3, 0.1, running=4, step=step)
    monkeypatch.setattr(arrival, "ask_all", swarm.ask_all)
    assert not swarm.begun()
    swarm = Swarm([range(6)], 3, 0.1, running=3, step=step)  # so few could be liars: there is no life to come back to
    monkeypatch.setattr(arrival, "ask_all", swarm.ask_all)
    assert {*swarm.begun()} == {*range(6)}


def test_silent_liars_keep_nobody_from_beginning_where_the_others_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 7 peers of which 2 may lie, 5 are; with 16 of which 7 may lie, 9 are not, and say so."""
    for honest, liars in ((5, 2), (9, 7)):
        swarm = Swarm([range(honest)], liars, 0.1)
        swarm.liars = range(0)
        monkeypatch.setattr(arrival, "ask_all", swarm.ask_all)
        begun = swarm.begun()
        assert len(begun) == (honest if liars == 2 else 0) and len({*begun.values()}) <= 1


def test_who_has_settled_follows_a_certificate_and_nothing_else() -> None:
    """So a liar that changes its word when some have settled moves nobody that they count on."""
    lives = [Life(number, 5, 1) for number in range(5)]
    for _ in range(3):
        heard = {life.me: {"state": "ready", **life.told()} for life in lives}
        for life in lives:
            life.hear({i: said for i, said in heard.items() if i != life.me})
    mine = dict(lives[0].gathered)
    lives[0].settle(Identity.from_seed("lies", 0), "run")
    other = {**heard[1], "gathered": {**heard[1]["gathered"], "4": "00" * 16}, "heard": {"4": "00" * 16}}
    for state in ("ready", SETTLED, "running"):
        lives[0].hear({i: {**other, "nonce": heard[i]["nonce"], "state": state} for i in range(1, 5)})
        assert lives[0].gathered == mine


@pytest.mark.parametrize("ended", [0, 1, 2])
def test_a_certificate_of_processes_that_have_ended_begins_nothing(ended: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Liars have kept their signatures back until honest peers had given up, and were started again."""
    swarm = Swarm([[0, 1, 2]], 2, 0.05)
    monkeypatch.setattr(arrival, "ask_all", swarm.ask_all)
    member = swarm.members[2]
    nonces = {i: other.life.nonce for i, other in swarm.members.items()}
    nonces |= {liar: bytes.fromhex(swarm._lie(liar, 2)["nonce"]) for liar in swarm.liars}
    for i in (*swarm.members, *swarm.liars):
        life = Life(i, 1, 0)
        life.gathered, life.begin = nonces, at(950)[0]
        life.settle(swarm.identities[i], "run")
        member.life.gathered, member.life.begin = nonces, life.begin
        member.life.signatures |= life.signatures
    for i in range(ended):
        swarm.members[i].life = Life(i, 5, 2)
    member.life.hear(swarm.ask_all(member), member.points, member.passed)
    assert member.life.certified and member.life.begins is (ended < 2)
    if member.life.begins:
        arrival._gather(member)
    else:
        with pytest.raises(NoFounders, match="only 3 of 5 peers have not been started again"):
            arrival._gather(member)
    assert (member.state == "running") is (ended < 2)


@pytest.mark.parametrize("running", [2, 3])
def test_a_late_peer_comes_back_to_a_life_that_began_before_its_checkpoint(
    running: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has passed that of step 1000; most have begun again at 950 without it. It cannot know why."""
    swarm, back = Swarm([[0, 1]] if running == 2 else [[0]], 0, 0.05, running=running, step=960), list[str]()
    for member in swarm.members.values():
        member.passed = at(950, 1000)
    monkeypatch.setattr(arrival, "ask_all", swarm.ask_all)
    monkeypatch.setattr(arrival, "come_back", lambda member, why: back.append(why))
    if running == 3:
        arrival._gather(swarm.members[0])
    else:
        with pytest.raises(NoFounders):
            arrival._gather(swarm.members[0])
    assert len(back) == (running == 3)
