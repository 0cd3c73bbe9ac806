"""What a coordinator makes of what peers tell it, whoever of them lies."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from albert.config import Config
from btard.protocol.ledger import ADMITTED, GRADUATED, Entry, keys_of
from btard.protocol.messages import NOBODY
from btard.swarm import coordinator as coordinator_module
from btard.swarm import tags
from btard.swarm.arrival import _is_status
from btard.swarm.config import AttackConfig
from btard.swarm.coordinator import Coordinator
from btard.swarm.founding import NoFounders
from btard.swarm.view import PATIENCE, SwarmView, healings_of
from tests.albert.trainers import tiny

HUGE = 10**400


def config(**changes: Any) -> Config:
    return tiny(Path("nowhere"), **{"steps": 50, **changes})


def row(step: int, loss: float | None = 1.0, **changes: Any) -> dict[str, Any]:
    told = {"step": step, "loss": loss, "active": 4, "samples": 8, "lr": 0.1, "sent": 100, "entries": 0}
    return {**told, "seconds": {"gradients": 1.0, "commit": 0.5}, **changes}


def ban(step: int, peer: int, kind: str = "wrong_gradient") -> str:
    return Entry(step, kind, "guilty", peer, (0,), (peer,), step - 1).to_json()


def status(*rows: dict[str, Any], ledger: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    told = {"state": "running", "step": 9, "recent": list(rows), "ledger": list(ledger), "entries": len(ledger)}
    return {**told, **changes}


def hear(view: SwarmView, said: dict[int, dict[str, Any]], now: float = 0.0) -> list[dict[str, Any]]:
    """One round of questions; returns the rows that are complete."""
    for peer, told in said.items():
        view.hear(peer, told, now)
    view.learn(now)
    return view.complete_rows(now)


def test_rows_are_medians_and_bans_are_counted_by_kind() -> None:
    view = SwarmView(config(), 0)
    losses = [1.0, 2.0, 30.0, None]
    (first,) = hear(view, {peer: status(row(0, loss, sent=100 + peer)) for peer, loss in enumerate(losses)})
    assert (first["loss"], first["sent"], first["sent_per_peer"], first["removed"]) == (2.0, 404, 101, 0)
    assert first["seconds"] == {"commit": 0.5, "gradients": 1.0} and first["samples_per_second"] == 8 / 1.5
    assert "attacking" not in first and "loss_at_ban" not in first
    ledger = (ban(1, 3), ban(2, 2, "silent"))
    later = {peer: status(row(1, entries=1), row(2, entries=2), row(3, entries=2), ledger=ledger) for peer in (0, 1)}
    rows = hear(view, later, 100.0)  # the removed are silent
    assert [r["removed"] for r in rows] == [1, 2, 2]
    assert [(r.get("bans/wrong_gradient"), r.get("bans/silent")) for r in rows] == [(1, None), (1, 1), (1, 1)]
    assert [r.get("loss_at_ban") for r in rows] == [1.0, 1.0, None]
    assert view.active() == [0, 1] and view.bans()[1] == {"peer": 2, "step": 2, "kind": "silent", "accusers": [0]}


def test_going_back_is_marked_and_nobodys_ban() -> None:
    view = SwarmView(config(steps=200), 100)
    back = Entry(2, "heal", "public", NOBODY, (), (), 0, losses={"0": 1.0, "2": 9.0}).to_json()
    stay = Entry(4, "heal", "public", NOBODY, (), (), 4, losses={"3": 1.0, "4": 1.0}).to_json()
    ledger = (ban(1, 3), back, ban(3, 2), stay)
    told = status(*(row(100 + step) for step in range(5)), ledger=ledger)
    rows = hear(view, dict.fromkeys(range(2), told))
    assert [r.get("back_to") for r in rows] == [None, None, 100, None, None]
    assert [r.get("loss_at_healing") for r in rows] == [None, None, 1.0, None, None]
    assert [r["removed"] for r in rows] == [0, 1, 1, 2, 2] and "bans/heal" not in rows[-1]
    shown = tags.scalars(rows[2], {})
    assert (shown["protocol/went back to step"], shown["loss/where all go back"]) == (100.0, 1.0)
    assert view.active() == [0, 1] and [entry["peer"] for entry in view.bans()] == [3, 2]
    assert healings_of(view.ledger.entries, 100) == [{"step": 102, "back_to": 100}]


def test_a_step_waits_for_the_verdicts_that_fell_in_it() -> None:
    view = SwarmView(config(), 0)
    ledger = (ban(0, 3),)
    # Half have told a ledger from before the verdict, half from after it.
    early = {0: status(row(0, entries=1)), 1: status(row(0, entries=1)), 3: status(row(0, entries=1))}
    assert hear(view, early | {2: status(row(0, entries=1), ledger=ledger)}) == []
    (found,) = hear(view, {peer: status(row(0, entries=1), ledger=ledger) for peer in range(3)}, 1.0)
    assert found["loss_at_ban"] == 1.0


def test_verdicts_that_do_not_come_hold_nobody_up_for_long() -> None:
    view = SwarmView(config(), 0)
    told = {peer: status(*(row(step, entries=70) for step in range(3)), ledger=(), entries=70) for peer in range(4)}
    assert hear(view, told) == []
    assert [r["step"] for r in hear(view, told, PATIENCE)] == [0, 1, 2]
    assert [r["step"] for r in hear(view, {p: status(row(3, entries=70), entries=70) for p in range(4)}, 20.0)] == [3]
    view.hear(0, status(row(4, entries=71), entries=71), 30.0)
    assert view.complete_rows(30.0, last=True) == []


def test_a_step_waits_for_whoever_is_still_in_it() -> None:
    view = SwarmView(config(), 0)
    ahead = {peer: status(row(0, 1.0), row(1, 1.0), step=2) for peer in range(3)}
    assert hear(view, ahead | {3: status(step=0)}) == []
    rows = hear(view, {3: status(row(0, 4.0), step=1)}, 1.0)
    assert [(r["step"], r["sent"]) for r in rows] == [(0, 400)]  # step 1 still waits
    assert [r["sent"] for r in hear(view, {3: status(row(1, 4.0), step=2)}, 2.0)] == [400]
    # Whoever was away for a step is past it, and is not waited for.
    later = {peer: status(row(2), row(3), step=4) for peer in range(3)}
    assert [r["step"] for r in hear(view, later | {3: status(row(3), step=4)}, 3.0)] == [2, 3]


def test_whoever_stays_behind_holds_the_others_up_once() -> None:
    view = SwarmView(config(), 0)

    def told(step: int, now: float) -> list[int]:
        ahead = {peer: status(row(step), row(step + 1), step=step + 2) for peer in range(3)}
        return [r["step"] for r in hear(view, ahead | {3: status(step=0)}, now)]

    assert told(0, 0.0) == [] and told(0, PATIENCE) == [0]
    assert told(1, PATIENCE + 1) == [1] and told(2, PATIENCE + 2) == [2]
    # It tells of a step again: from now on it is waited for again.
    for peer in range(3):
        view.hear(peer, status(row(3), row(4), row(5), step=6), PATIENCE + 3)
    assert [r["sent"] for r in hear(view, {3: status(row(3), step=4)}, PATIENCE + 3)] == [400]
    assert view.complete_rows(PATIENCE + 4) == [] != view.complete_rows(2 * PATIENCE + 4)


def test_at_the_end_what_most_have_told_is_shown() -> None:
    view = SwarmView(config(), 0)
    hear(view, {peer: status(row(0), step=1) for peer in range(3)})
    assert view.next == 0
    assert [r["step"] for r in view.complete_rows(1.0, last=True)] == [0]


def test_whoever_is_banned_later_counts_in_the_steps_before() -> None:
    view = SwarmView(config(), 0)
    ledger = (ban(1, 3),)
    said = {peer: status(row(0), row(1, entries=1), row(2, entries=1), ledger=ledger) for peer in range(3)}
    rows = hear(view, said | {3: status(row(0, sent=7))})
    assert [r["sent"] for r in rows] == [400, 300, 300]


def test_a_ban_in_a_step_that_nobody_watched_marks_the_next_one() -> None:
    view = SwarmView(config(), 0)
    view.go_on([{"step": 4, "removed": 1}], [ban(2, 3)])
    ledger = (ban(2, 3), ban(6, 2))
    rows = hear(view, {peer: status(row(9, None), row(10), row(11), ledger=ledger) for peer in range(2)})
    assert [r.get("loss_at_ban") for r in rows] == [None, 1.0, None]


@pytest.mark.parametrize(
    "nonsense",
    [
        {"sent": HUGE},
        {"lr": float("nan")},
        {"active": True},
        {"samples": float("inf")},
        {"seconds": {"commit": HUGE}},
        {"seconds": [1]},
        {"loss": HUGE},
        {"step": 10**9},
        {"step": "0"},
    ],
)
def test_one_peers_nonsense_changes_no_row(nonsense: dict[str, Any]) -> None:
    view = SwarmView(config(), 0)
    said = {peer: status(row(0), row(1)) for peer in range(3)}
    rows = hear(view, said | {3: status({**row(0), **nonsense})})
    assert rows[0]["loss"] == 1.0 and rows[0]["sent"] == 300
    json.dumps(rows, allow_nan=False)


@pytest.mark.parametrize("sent", [-(10**12), 0, 10**15])
def test_one_peer_does_not_say_what_all_have_sent(sent: int) -> None:
    (first,) = hear(
        SwarmView(config(), 0), {peer: status(row(0, sent=sent if peer == 3 else 100)) for peer in range(4)}
    )
    assert (first["sent"], first["sent_per_peer"]) == (400, 100)


def test_one_peer_invents_no_phases_and_no_verdicts() -> None:
    view = SwarmView(config(), 0)
    said = {peer: status(row(0)) for peer in range(3)}
    seconds = {f"phase {number}": 1.0 for number in range(100)}
    lie = status(row(0, seconds=seconds, entries=HUGE), ledger=(ban(0, 1), "no entry"), entries=2)
    (found,) = hear(view, said | {3: lie})
    assert found["seconds"].keys() == {"commit", "gradients"} and found["removed"] == 0 and view.bans() == []


def test_who_did_what_is_what_most_peers_say_alike() -> None:
    view = SwarmView(config(), 0)
    told = {"roles": "wvwa", "checks": [[1, 0]], "accused": [3], "bytes": {"commit": 7, "part": 100}}
    lie = {"roles": "<script>", "checks": "x", "bytes": {"commit": HUGE}}
    said = {peer: status(row(0, **told), row(1, **(told if peer < 2 else lie))) for peer in range(4)}
    first, second = hear(view, said | {3: status(row(0, **lie), row(1, **lie))})
    assert json.loads(json.dumps({name: first.get(name) for name in told})) == told and "skipped" not in first
    assert not told.keys() & second.keys(), "two of four are no majority"


def test_another_ledger_takes_the_place_of_mine_only_for_most_of_all() -> None:
    view = SwarmView(config(peers=5), 0)
    hear(view, {peer: status(row(0, entries=1), ledger=(ban(0, 4),)) for peer in range(4)})
    assert view.active() == [0, 1, 2, 3]
    for peer in range(3):
        view.hear(peer, status(ledger=(ban(1, 3),)), 100.0)
    news = view.learn(100.0)
    assert news is not None and news.anew and len(news.lines) == 1 and view.active() == [0, 1, 2, 4]


ATTACK = AttackConfig(name="sign_flip", start=3, stop=6)


def test_known_attackers_are_counted_from_the_attacks_start_to_its_stop() -> None:
    numbered = config(peers=8, byzantine=3, peer=0, attack=replace(ATTACK, peers="2,5,6"))
    view = SwarmView(numbered, 0)
    view.go_on([{"step": 1}], [])
    ledger = (ban(4, 5),)
    rows = hear(
        view, {peer: status(*(row(step) for step in range(2, 8)), ledger=ledger) for peer in range(8) if peer != 5}
    )
    assert [(r["step"], r["attacking"]) for r in rows] == [(2, 0), (3, 3), (4, 2), (5, 2), (6, 0), (7, 0)]


def test_who_attacks_is_what_peers_say_of_themselves_where_numbers_say_nothing() -> None:
    drawn = config(peers=8, byzantine=3, attack=ATTACK)
    simulation = SwarmView(replace(drawn, peer=0), 0)
    assert simulation.attackers() == drawn.attackers() and len(drawn.attackers()) == 3
    strangers = SwarmView(drawn, 0)
    assert strangers.attackers() == frozenset() and strangers.attacks_of(1) is None
    for view in (simulation, strangers):
        for peer in range(8):
            view.hear(peer, status(attacks=peer in (1, 4)), 0.0)
        view.hear(7, status(attacks="yes"), 0.0)
        view.hear(1, {"state": "gathering"}, 1.0)  # says nothing of it now
        assert view.attackers() == {1, 4}
    assert [p["attacks"] for p in strangers.peers()] == [peer in (1, 4) for peer in range(8)]
    listed = SwarmView(replace(drawn, attack=replace(ATTACK, peers="0,2,3")), 0)
    assert listed.attackers() == {0, 2, 3}


def test_a_status_that_cannot_be_compared_is_no_status() -> None:
    assert _is_status({"state": "gathering", "step": 0, "stored": [0]}) and _is_status({"state": "starting"})
    for nonsense in ({"stored": 5}, {"step": "1"}, {"step": True}, {"state": ["gathering"]}):
        assert not _is_status({"state": "gathering", "step": 0, "stored": [0], **nonsense})


def test_what_a_peer_says_of_itself_is_fit_for_a_table() -> None:
    view = SwarmView(config(), 0)
    hostile = {"state": "\x1b[2J\n", "phase": ["x"], "instance": "i" * 10**4, "step": 10**4200}
    view.hear(0, hostile | {"recent": [row(0, math.nan)]}, 0.0)
    peer = view.peers()[0]
    assert (peer["state"], peer["phase"], peer["step"], peer["loss"]) == (r"\x1b[2J\n", None, None, None)
    assert len(peer["instance"]) == 64


# Sixteen peers of which seven lie together, and three of these have been removed.

BANNED = tuple(ban(5, peer) for peer in (13, 14, 15))
HONEST, LIARS = range(9), range(9, 16)


def sixteen(**changes: Any) -> SwarmView:
    return SwarmView(config(**{"peers": 16, "byzantine": 7, "steps": 1000, **changes}), 0)


def honestly(step: int) -> dict[str, Any]:
    """What an honest peer says that is done with `step`: the steps that fit into a status."""
    entries = [3 if s >= 5 else 0 for s in range(step + 1)]
    rows = [row(s, entries=entries[s]) for s in range(max(0, step - 23), step + 1)]
    return status(*rows, ledger=BANNED if step >= 5 else (), step=step + 1)


def lying(*steps: int, **changes: Any) -> dict[str, Any]:
    return status(*(row(s, -666.0, **changes) for s in steps), step=10**6)


def test_the_removed_do_not_count_among_most() -> None:
    view = sixteen()
    found = []
    for step in range(12):
        said = {peer: honestly(step) for peer in HONEST}
        found += hear(view, said | {peer: lying(*range(970, 1000)) for peer in LIARS}, step * PATIENCE)
    assert view.active() == [peer for peer in range(16) if peer not in (13, 14, 15)]
    assert [r["step"] for r in found] == list(range(12)) and {r["loss"] for r in found} == {1.0}
    assert not view.over


def test_nothing_is_remembered_that_no_majority_has_reached() -> None:
    view = sixteen()
    for steps in zip(*[iter(range(10, 1000))] * 20, strict=False):
        hear(view, {15: lying(*steps, junk=["x"] * 1000) | {"junk": ["x"] * 1000}})
    assert not view._rows and len(view._said[15].rows) == 20
    assert all(r.keys() == view._said[15].rows[0].keys() for r in view._said[15].rows)
    assert "junk" not in view._said[15].rows[0] and not hasattr(view._said[15], "junk")


def test_who_is_late_again_and_again_costs_a_wait_that_grows_rare() -> None:
    view, now, waited, found = SwarmView(config(steps=200), 0), 0.0, [], []
    for step in range(199):  # every second step it does not tell of
        ahead = {peer: status(row(step), row(step + 1), step=step + 2) for peer in range(3)}
        liar = status(*([row(step)] if step % 2 else []), step=step)
        while not (rows := hear(view, {**ahead, 3: liar}, now)):
            waited.append(now)
            now += PATIENCE
        found += [r["step"] for r in rows]
    assert found == list(range(199)) and len(waited) <= 8, "log2 of the steps"


def test_liars_do_not_hold_an_observer_at_a_step_that_nobody_else_saw() -> None:
    view = sixteen()
    view.go_on([{"step": 99, "removed": 0}], [])
    said = {peer: status(*(row(s) for s in range(176, 200)), step=200) for peer in HONEST}
    rows = hear(view, said | {peer: lying(100) for peer in LIARS})
    assert rows[0]["step"] == 176 and {r["loss"] for r in rows} == {1.0}


def test_what_was_said_long_ago_is_no_vote() -> None:
    view = SwarmView(config(peers=9, byzantine=3), 0)
    before, after = (
        [Entry(step, "heal", "public", NOBODY, (), (), step, losses={}).to_json() for step in range(count)]
        for count in (1, 2)
    )
    hear(view, {peer: status(ledger=tuple(before)) for peer in range(6)})  # peers 0 and 1 stop here
    fresh = {peer: status(ledger=tuple(after)) for peer in range(2, 6)}
    for now in (100.0, 101.0):
        hear(view, fresh | {peer: status(ledger=tuple(before)) for peer in range(6, 9)}, now)
        assert len(view.ledger.entries) == 2


@pytest.mark.parametrize("name", ["\ud800", "invented", "time/" * 9, "Ä"])
def test_liars_that_are_most_of_those_who_have_told_name_no_phases(name: str) -> None:
    view = sixteen()
    said = {peer: status(row(0), row(1), step=2) for peer in range(2)}
    lies = {peer: lying(0, 1, seconds={name: 1.0, "commit": 0.5}) for peer in LIARS}
    rows = hear(view, said | lies)
    assert rows and all(r["seconds"].keys() == {"commit"} for r in rows)


def test_the_members_are_those_that_the_ledger_says() -> None:
    view = SwarmView(config(peers=7, byzantine=3, protocol=replace(config().protocol, probation=5, validators=0)), 0)
    keys = {peer: bytes([peer]) * 32 for peer in range(13)}
    gone = [Entry(9, "gone", "public", peer, (), (peer,), 9) for peer in range(3)]
    came = [Entry(9, ADMITTED, "public", peer, (), (), 9, evidence=keys[peer].hex()) for peer in range(7, 13)]
    stayed = [Entry(30, GRADUATED, "public", peer, (), (), 30) for peer in range(7, 12)]
    for entry in (*gone, *came, *stayed):
        view.ledger.append(entry)
    assert view.active() == list(range(3, 12)) and view.byzantine == 3  # peer 12 is on probation
    assert keys_of(view.ledger.entries, [keys[peer] for peer in range(7)]) == keys
    ledger = tuple(entry.to_json() for entry in view.ledger.entries)
    hear(view, {peer: status(row(0), row(1), attacks=peer == 8, ledger=ledger) for peer in range(3, 13)})
    assert view.next == 2 and view.present(0.0).keys() == set(range(3, 12)) and view.attackers() == {8}
    assert [peer["peer"] for peer in view.peers()] == list(range(12))


def test_a_loss_that_is_no_number_does_not_move_the_median() -> None:
    losses = [1.0, math.nan, 3.0, math.inf]
    (first,) = hear(SwarmView(config(), 0), {peer: status(row(0, loss)) for peer, loss in enumerate(losses)})
    assert first["loss"] == 2.0


@pytest.mark.parametrize("liars", [(3,), ()])
def test_those_who_may_be_liars_do_not_keep_the_coordinator_when_all_others_are_gone(
    liars: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    view, now = SwarmView(config(byzantine=1), 0), [0.0]

    def look(work: Any) -> None:
        for liar in liars:
            view.hear(liar, status(), now[0])
        assert now[0] < 3600.0, "it still watches"

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(coordinator_module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    coordinator = Coordinator.__new__(Coordinator)
    vars(coordinator).update(view=view, config=view.config, node=SimpleNamespace(run=look))
    vars(coordinator)["keeper"] = SimpleNamespace(keep=lambda: False)
    for name in ("_ask_all", "_note_ledger", "_log_rows", "_write_status"):
        vars(coordinator)[name] = lambda: None
    with pytest.raises(NoFounders, match=rf"only {len(liars)} of 4 peers have answered for .* and 1 may be Byzantine"):
        coordinator._watch()


def test_waits_do_not_go_by_the_time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that was set back by an hour kept the coordinator from logging for an hour."""
    told = list[float]()

    class View:
        ledger = SimpleNamespace(entries=[])

        def active(self) -> list[int]:
            return [0]

        def hear(self, number: int, status: Any, now: float) -> None:
            told.append(now)

        def learn(self, now: float) -> None:
            told.append(now)

        def complete_rows(self, now: float, last: bool) -> list[Any]:
            told.append(now)
            return []

    async def ask_status(*_: Any, **__: Any) -> dict[str, Any]:
        return {}

    monkeypatch.setattr(coordinator_module, "ask_status", ask_status)
    monkeypatch.setattr(coordinator_module, "time", SimpleNamespace(monotonic=lambda: 7.0, time=lambda: -3600.0))
    coordinator = Coordinator.__new__(Coordinator)
    vars(coordinator).update(view=View(), doors=None, founders=(b"",), config=SimpleNamespace(peers=1))
    asyncio.run(coordinator._ask_all())
    coordinator._note_ledger()
    coordinator._log_rows()
    assert told == [7.0] * 3
    view = SwarmView(config(), 0)
    view.hear(2, status(row(0)), 7.0)
    assert [peer["last_seen"] for peer in view.peers(100.0)] == [None, None, 107.0, None], "for people it is one"
