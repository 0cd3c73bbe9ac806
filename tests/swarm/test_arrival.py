"""How a peer gets in that is not among the first ones."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from btard.drivers.local import LocalDriver
from btard.protocol.config import ProtocolConfig
from btard.protocol.download import Download, WrongState
from btard.protocol.identity import Identity
from btard.protocol.messages import JoinRequest
from btard.protocol.peer import Peer
from btard.protocol.snapshot import public_state
from btard.swarm import arrival
from btard.swarm.deadlines import Deadlines
from btard.swarm.fetch import Fetched
from btard.swarm.founding import NoFounders
from btard.swarm.member import PREVIOUS
from btard.task import QuadraticTask

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
