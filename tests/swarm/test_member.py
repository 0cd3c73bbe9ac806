"""What a member says of itself stays within what the others read."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from btard.protocol.config import ProtocolConfig
from btard.protocol.ledger import ADMITTED, GRADUATED, Entry
from btard.swarm.life import NONCE, Life
from btard.swarm.member import STATUS_LEDGER, Member, _newest, fitted
from btard.swarm.said import RECENT
from btard.swarm.state import MAX_STATUS


@pytest.mark.parametrize("voters", [0, 3, 32, 1000])
def test_a_status_has_the_newest_entries_that_fit(voters: int) -> None:
    votes = dict.fromkeys(range(voters), "guilty")
    entries = [Entry(step, "misreport", "guilty", 1, (2,), (1,), step, 0, "", votes) for step in range(500)]
    told = _newest(entries)
    assert told == [entry.to_json() for entry in entries[-len(told) :]] and 1 <= len(told) < 500
    assert len(json.dumps(told)) < STATUS_LEDGER + 2 * len(told) < MAX_STATUS - 20_000


@pytest.mark.parametrize(("peers", "steps"), [(16, RECENT), (512, RECENT), (1024, 10), (2000, 1)])
def test_a_status_of_many_peers_has_fewer_steps(peers: int, steps: int) -> None:
    life = Life(0, peers, 0)
    life.heard = life.gathered = {peer: bytes(NONCE) for peer in range(peers)}
    votes = dict.fromkeys(range(peers // 2), "guilty")
    entries = [Entry(step, "misreport", "guilty", 1, (2,), (1,), step, 0, "", votes) for step in range(40)]
    phases = {f"phase_{number}": 123_456_789 for number in range(20)}
    seen = {"roles": "w" * peers, "checks": [[1, 2]], "skipped": list(range(peers // 4)), "bytes": phases}
    rows = [{"step": step, "loss": 1.2345678, "seconds": phases, **seen} for step in range(RECENT)]
    said = {"active": list(range(peers)), "ledger": _newest(entries), "recent": rows, **life.told()}
    short = fitted(said, MAX_STATUS)
    assert len(json.dumps(short)) <= MAX_STATUS and len(short["recent"]) >= steps
    assert short["recent"] == rows[-len(short["recent"]) :] and short["ledger"] == said["ledger"]
    assert {name: short[name] for name in life.told()} == life.told()


def test_before_it_begins_a_peer_goes_by_the_ledger_of_its_newest_checkpoint() -> None:
    keys = [bytes([peer]) * 32 for peer in range(9)]
    entries = [Entry(1, "wrong_gradient", "guilty", peer, (0,), (peer,), 1) for peer in (1, 2)]
    entries += [Entry(1, "silent", "public", peer, (), (peer,), 1) for peer in (3, 4)]
    entries += [
        Entry(2, ADMITTED, "public", 7, (), (), 2, evidence=keys[7].hex()),
        Entry(9, GRADUATED, "public", 7, (), (), 9),
    ]
    ledger = [entry.to_json() for entry in entries]
    config = ProtocolConfig(peers=7, byzantine=3, validators=0, run_id="members")
    peer = SimpleNamespace(t=0, roster=SimpleNamespace(keys=tuple(keys[:7])), byzantine=3)
    member: Any = SimpleNamespace(
        peer=peer,
        config=config,
        protocol=config,
        state="gathering",
        stored={5: ({}, {"peer": {"ledger": []}}), 10: ({}, {"peer": {"ledger": ledger}})},
        driver=SimpleNamespace(members=range(7)),
    )
    member._newest_ledger = lambda: Member._newest_ledger(member)
    member._stored_ledger = lambda: Member._stored_ledger(member)
    members: Any = Member.members
    tolerated: Any = Member.tolerated
    assert members.fget(member) == {peer: keys[peer] for peer in (0, 5, 6, 7)} and tolerated.fget(member) == 1
    member.stored = {}
    assert members.fget(member) == dict(enumerate(keys[:7])) and tolerated.fget(member) == 3
