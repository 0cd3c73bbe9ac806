"""How a peer gets in that is not among the first ones, and how all go on after they have stopped."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from btard.drivers.local import LocalDriver
from btard.harness.run_folder import RunFolder, read_metrics, read_timings
from btard.protocol.behaviour import HONEST
from btard.protocol.config import ProtocolConfig
from btard.protocol.download import Download, WrongState
from btard.protocol.identity import Identity
from btard.protocol.ledger import ADMITTED, GRADUATED, Entry, Ledger
from btard.protocol.messages import JoinRequest
from btard.protocol.peer import Peer
from btard.protocol.snapshot import public_state
from btard.swarm import arrival
from btard.swarm import member as member_module
from btard.swarm import trainer as trainer_module
from btard.swarm.deadlines import Deadlines
from btard.swarm.driver import OutOfStep
from btard.swarm.fetch import Fetched
from btard.swarm.founding import NoFounders
from btard.swarm.life import Life, said_of
from btard.swarm.member import Member
from btard.swarm.notes import Notes
from btard.swarm.state import PREVIOUS
from btard.swarm.trainer import Trainer
from btard.task import QuadraticTask
from tests.swarm.points import at
from tests.swarm.quadratic import Config

D = 20


def test_who_is_not_admitted_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that were not there yet, or had too many requests, have not heard of it."""
    cohort = LocalDriver(ProtocolConfig(peers=3, probation=2, run_id="asks again"), QuadraticTask(D))
    newcomer, asked = Identity.from_seed("newcomer"), list[bytes]()
    first = cohort.peers[0]
    peer = Peer(3, newcomer, first.roster.grown(newcomer.public_key), cohort.config, D)

    async def ask_to_join(doors: Any, key: bytes, request: JoinRequest) -> None:
        asked.append(key)
        if len(asked) > 2 * 3:
            for member in cohort.peers.values():
                member.receive(request)

    async def fetch_state(*_: Any, **__: Any) -> Fetched:
        assert first.t < 6, "it would wait for ever"
        cohort.step(torch.ones(D))
        tensors = {"parameters": torch.ones(D), PREVIOUS: torch.ones(D)}
        return Fetched(first.t, Download(public_state(first), tensors), (0, 1))

    monkeypatch.setattr(arrival, "ask_all", lambda member: {})
    monkeypatch.setattr(arrival, "ask_to_join", ask_to_join)
    monkeypatch.setattr(arrival, "fetch_state", fetch_state)
    monkeypatch.setattr(arrival, "POLL", 0.0)
    begun = list[Peer]()
    member = SimpleNamespace(
        identity=newcomer,
        peer=peer,
        members=dict(enumerate(first.roster.keys[:3])),
        tolerated=0,
        protocol=cohort.config,
        config=SimpleNamespace(run_id=cohort.config.run_id, deadlines=Deadlines()),
        node=SimpleNamespace(run=asyncio.run),
        driver=SimpleNamespace(
            others=(0, 1, 2),
            doors=None,
            past=SimpleNamespace(history=SimpleNamespace(restore=lambda *_: None)),
            restart=lambda peer, behind: begun.append(peer),
        ),
        optimizer=SimpleNamespace(params=torch.ones(D), state=dict, load=lambda tensors: None),
        device="cpu",
        patience=1.0,
        first=0,
        say=lambda line: None,
        make_peer=lambda number, roster: (Peer(number, newcomer, roster, cohort.config, D), None),
        note_life=lambda: None,
    )
    arrival._join(member)  # type: ignore[arg-type]
    assert len(asked) == 3 * 3 and set(asked) == set(first.roster.keys[:3])
    assert [peer.id for peer in begun] == [3] and begun[0].t == first.t


def test_who_finds_no_state_is_not_told_that_its_key_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fetch_state(*_: Any, **__: Any) -> Fetched:
        raise WrongState("no state has the signatures of more than half")

    monkeypatch.setattr(arrival, "fetch_state", fetch_state)
    monkeypatch.setattr(arrival, "ask_all", lambda member: {})
    monkeypatch.setattr(arrival, "POLL", 0.0)
    member = SimpleNamespace(
        identity=Identity.from_seed("alone"),
        peer=SimpleNamespace(),
        members={},
        tolerated=1,
        config=SimpleNamespace(deadlines=Deadlines(gather=1e-9)),
        node=SimpleNamespace(run=asyncio.run),
        driver=SimpleNamespace(doors=None),
        optimizer=SimpleNamespace(params=torch.ones(D), state=dict),
        patience=1.0,
        say=lambda line: None,
    )
    with pytest.raises(NoFounders, match=r"no state came within deadlines\.gather: .* nobody has removed this peer"):
        arrival.come_back(member, "out of step")  # type: ignore[arg-type]


def gather(
    monkeypatch: pytest.MonkeyPatch,
    here: Sequence[int],
    stored: Sequence[int],
    gather: float | Sequence[float],
    tolerated: int = 0,
    lacking: Sequence[int] = (),
) -> dict[int, Any]:
    """Number -> the life that it begins, or why it does not, of 6 members of which 3 were there at the start.

    `stored`: the checkpoints of those that are not `lacking` them. `gather`: how long each waits, or all; with them
    whoever begins is to see that most are about to.
    """
    waits = [gather] * 6 if isinstance(gather, float) else gather
    identities = [Identity.from_seed("arrives", number) for number in range(6)]
    members = {
        number: SimpleNamespace(
            state="starting",
            peer=SimpleNamespace(id=number),
            identity=identities[number],
            members={peer: identity.public_key for peer, identity in enumerate(identities)},
            life=Life(number, 3, 0),
            tolerated=tolerated,
            points=at(0, *(() if number in lacking else stored)),
            passed=() if number in lacking else at(*stored[:-1]),
            config=SimpleNamespace(peers=3, run_id="run", deadlines=SimpleNamespace(gather=waits[number])),
            first=0,
            said=list[str](),
        )
        for number in here
    }

    def ask_all(asking: Any) -> dict[int, Any]:
        others = {number: member for number, member in members.items() if number != asking.peer.id}
        return {n: {"state": m.state, "stored": said_of(m.points), **m.life.told()} for n, m in others.items()}

    def arrived(member: Any) -> Any:
        def begin_life() -> None:
            states = [other.state for other in members.values()]
            assert member.life.certified and all(state in arrival.BEGUN for state in states), states

        member.say = member.said.append
        member.begin_life = begin_life
        try:
            arrival._gather(member)
        except NoFounders as error:
            return str(error)
        if member.state != "running":
            return member.state
        return member.life.begin[0], member.life.epoch("run", b"")

    def come_back(member: Any, why: str) -> None:
        member.state = "returning"

    monkeypatch.setattr(arrival, "ask_all", ask_all)
    monkeypatch.setattr(arrival, "come_back", come_back)
    monkeypatch.setattr(arrival, "POLL", 0.001)
    with ThreadPoolExecutor(len(here)) as pool:
        return dict(zip(here, pool.map(arrived, members.values()), strict=True))


@pytest.mark.parametrize("here", [(0, 1, 2, 3, 4, 5), (0, 3, 4, 5)])
def test_all_members_go_on_and_not_the_first_peers_alone(here: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of them are needed: as many have joined as there were at the start. The last case has lost two of these."""
    ends = gather(monkeypatch, here, [80, 100], 30.0 if len(here) == 6 else 0.5)
    assert len({*ends.values()}) == 1 and ends[0][0] == 100


@pytest.mark.parametrize("waits", [(0.0, 0.0, 5.0, 5.0, 5.0), (0.0, 0.2, 0.3, 0.5, 5.0)])
def test_members_that_start_far_apart_begin_together(waits: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """One is missing, so each waits for it; a peer that begins waits one phase for the others, not longer."""
    begun = time.monotonic()
    ends = gather(monkeypatch, range(5), [80, 100], waits, tolerated=1)
    assert len({*ends.values()}) == 1 and ends[0][0] == 100
    assert time.monotonic() - begun < 4.0


def test_too_few_members_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """They tried, and each waited for the others' state."""
    for end in gather(monkeypatch, (0, 1, 2), [80, 100], 0.2).values():
        assert end.startswith("only 3 of 6 peers are here after deadlines.gather = 0.2 s, and 4 are needed")


@pytest.mark.parametrize("lacking", [(3, 4, 5), (0, 1, 2, 3, 4)])
def test_nobody_begins_where_half_or_more_lack_the_checkpoint(
    lacking: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Least of all at the start, which all have."""
    monkeypatch.setattr(arrival, "GRACE", 0.0)
    for end in gather(monkeypatch, range(6), [80, 100], 0.1, lacking=lacking).values():
        assert end == (
            f"only {6 - len(lacking)} of 6 peers say that they have the checkpoint of step 80, 0.1 s after "
            "deadlines.gather; more than half are needed: start all again that have it"
        )


def test_who_lacks_the_checkpoint_comes_back_to_those_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = gather(monkeypatch, range(6), [80, 100], 30.0, lacking=(4, 5))
    assert (ends[4], ends[5]) == ("returning", "returning") and {ends[number][0] for number in range(4)} == {100}


def test_who_has_joined_takes_no_part_in_a_life_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = gather(monkeypatch, range(6), [], 30.0)
    assert {ends[number][0] for number in range(3)} == {0} and [ends[number] for number in (3, 4, 5)] == [
        "returning"
    ] * 3


@pytest.mark.parametrize("graduated", [True, False])
def test_who_has_joined_is_the_peer_that_its_checkpoint_says(
    graduated: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as it is a member; on probation it has no say in how all go on. Doors are open to all members."""
    founders = tuple(Identity.from_seed("founder", peer).public_key for peer in range(3))
    other, me = Identity.from_seed("other"), Identity.from_seed("me")
    entries = [
        Entry(2, ADMITTED, "public", 3, (), (), 2, evidence=other.public_key.hex()),
        Entry(3, ADMITTED, "public", 4, (), (), 3, evidence=me.public_key.hex()),
        *([Entry(5, GRADUATED, "public", 4, (), (), 5)] if graduated else []),
    ]
    config = ProtocolConfig(peers=3, probation=2, run_id="joined")
    member = Member.__new__(Member)
    vars(member).update(
        identity=me,
        config=SimpleNamespace(peers=3, checkpoint_every=5, deadlines=Deadlines()),
        protocol=config,
        task=QuadraticTask(D),
        node=None,
        out=Path(),
        made_by="",
        state="starting",
        stored={},
        notes=Notes(tmp_path),
    )
    made = list[Peer]()

    def make_peer(number: int, roster: Any) -> tuple[Peer, None]:
        made.append(Peer(number, me, roster, config, D))
        return made[-1], None

    def find_stored() -> None:
        member.stored = {6: ({}, {"peer": {"ledger": [entry.to_json() for entry in entries]}})}

    vars(member).update(make_peer=make_peer, find_stored=find_stored, _trail=None)
    for name in ("StateService", "Past", "ParameterHistory", "Recorder", "trusted_keys"):
        monkeypatch.setattr(member_module, name, lambda *_, **__: None)
    monkeypatch.setattr(
        member_module, "SwarmDriver", lambda peer, *_, **__: SimpleNamespace(peer=peer, members=peer.active)
    )
    monkeypatch.setattr(Member, "patience", 1.0)
    doors = SimpleNamespace(members={})
    assert member.take_seat(founders, doors) is graduated  # type: ignore[arg-type]
    assert doors.members == {key: i for i, key in enumerate(founders)} | ({me.public_key: 4} if graduated else {})
    assert [peer.id for peer in made] == [4] and member.life.me == 4
    assert made[0].roster.keys == (*founders, other.public_key, me.public_key)


def test_who_comes_back_to_an_earlier_step_does_the_later_ones_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others had all stopped, and have begun again at their checkpoint. A later one stays until it is replaced."""
    folder = RunFolder(tmp_path, Config(), events=False)
    folder.start(0)
    entries = [Entry(step, "silent", "public", step, (), (step,), step) for step in range(3)]
    peer = SimpleNamespace(t=0, id=0, ledger=Ledger(), behaviour=HONEST)
    trainer = Trainer.__new__(Trainer)
    driver = SimpleNamespace(peer=peer)
    vars(trainer).update(config=Config(steps=9), first=0, folder=folder, driver=driver, show=False, recent=deque())
    trainer.stored = dict.fromkeys((0, 3, 6), ({}, {}))
    came_back = list[str]()

    def step(bar: Any) -> None:
        if peer.t == 7 and not came_back:
            raise OutOfStep("nobody is there")
        row = {"step": peer.t, "loss": float(len(came_back))}
        folder.log(peer.t, row, {"commit": 1.0})
        trainer.recent.append(row)
        peer.t += 1

    def come_back(member: Any, why: str) -> None:
        folder.checkpoints.save_checkpoint(6, {}, {})
        folder.checkpoints.save_checkpoint(3, {}, {})
        came_back.append(why)
        peer.t, peer.ledger = 4, Ledger.of(entry.to_json() for entry in entries)

    vars(trainer)["_step"] = step
    monkeypatch.setattr(trainer_module, "come_back", come_back)
    trainer._train()
    folder.close()
    steps = [0.0] * 4 + [1.0] * 5
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [*enumerate(steps)]
    assert [line["step"] for line in read_timings(tmp_path)] == [*range(9)] and len(folder.ledger()) == 3
    assert [row["step"] for row in trainer.recent] == [*range(9)]
    names = [file.stem for file in folder.checkpoints.files()]
    assert names == ["step-00000003", "step-00000006"] and {*trainer.stored} == {0, 3}
    assert [step for step in range(9) if trainer._saves(step)] == [0, 3, 6], "checkpoint_every is 50"


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
def test_a_peer_that_may_compute_other_bits_is_named_where_these_have_to_be_equal(validation: str) -> None:
    said = list[str]()
    member = SimpleNamespace(
        platform="torch 2, 2 threads", protocol=SimpleNamespace(validation=validation), say_once=said.append
    )
    others: dict[int, Any] = {1: {"platform": "torch 2, 2 threads"}, 2: {}, 3: {"platform": 7}}
    arrival._compare_platforms(member, others | {4: {"platform": "torch 2, 4 threads\x1b[2J"}})  # type: ignore[arg-type]
    assert len(said) == (validation == "exact")
    for line in said:
        assert line.startswith(
            "warning: peer 4 computes with torch 2, 4 threads\\x1b[2J; this one with torch 2, 2 threads"
        )
