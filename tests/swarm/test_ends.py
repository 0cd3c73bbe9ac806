"""The word that a step is over: who has to say it, what is believed, and what waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from btard.protocol import wire
from btard.protocol.behaviour import HONEST
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity, Roster
from btard.protocol.peer import Peer
from btard.protocol.record import StepRecord
from btard.swarm.ends import FRAMES, OVER, Ends
from btard.swarm.links import Link
from btard.swarm.node import Node
from btard.swarm.rounds import Rounds
from tests.swarm.wires import Wire, frame, run

PEERS, BYZANTINE = 7, 2
CONFIG = ProtocolConfig(peers=PEERS, byzantine=BYZANTINE, run_id="ends")
IDENTITIES = [Identity.from_seed("ends", peer) for peer in range(PEERS)]
ROSTER = Roster(tuple(identity.public_key for identity in IDENTITIES))


def ends_of(number: int, epoch: bytes = b"life") -> Ends:
    peer = Peer(number, IDENTITIES[number], ROSTER, CONFIG, 10, HONEST)
    peer.epoch = epoch
    return Ends(peer)


def past(number: int, *, removed: int, joined: int | None = None) -> Ends:
    """Of a peer that has finished step 0, in which liar `removed` went: one fewer can lie in step 1."""
    ends = ends_of(number)
    peer = ends.peer
    peer.last = StepRecord(0, peer.active, {}, b"")
    peer.last.byzantine = BYZANTINE
    peer.coins.append(bytes(32))
    peer.active = tuple(p for p in peer.active if p != removed)
    peer.byzantine = BYZANTINE - 1
    if joined is not None:
        peer.last.active = tuple(p for p in peer.last.active if p != joined)
    return ends


def words(*members: int, step: int = 0) -> list[bytes]:
    return [ends_of(member).sign(step) for member in members]


def test_so_many_say_so_that_one_of_them_does_not_lie() -> None:
    ends = ends_of(0)
    for member, word in zip((1, 1, 2), words(1, 1, 2), strict=True):
        ends.hear(member, word)
    assert not ends.over(0)
    ends.sign(0)
    assert ends.over(0) and not ends.over(1)
    elsewhere = ends_of(6)
    elsewhere.hear(4, ends.proof(0))
    assert elsewhere.over(0)
    assert len(ends.proof(0)) <= ends.limit


def test_what_is_enough_for_who_is_past_a_step_is_enough_for_who_is_still_in_it() -> None:
    ends, still_in = past(0, removed=5), ends_of(6)
    ends.sign(0)
    ends.hear(1, words(1)[0])
    still_in.hear(0, ends.proof(0))
    assert not ends.over(0) and not still_in.over(0), "b_1 + 1 words are too few for whoever knows of b_0 alone"
    ends.hear(5, words(5)[0])
    assert ends.over(0), "who was removed in the step was in it"
    still_in.hear(0, ends.proof(0))
    assert still_in.over(0)
    assert not ends.over(1)


def test_who_became_a_member_in_a_step_has_no_word_on_it() -> None:
    ends = past(0, removed=5, joined=4)
    ends.sign(0)
    for member in (1, 4):
        ends.hear(member, words(member)[0])
    assert not ends.over(0)
    ends.hear(2, words(2)[0])
    assert ends.over(0)


@pytest.mark.parametrize(
    "said",
    [
        ends_of(3, b"another life").sign(0),
        wire.pack((0, (3, IDENTITIES[4].sign(b"x")))),
        wire.pack((0, *((3 + i, bytes(64)) for i in range(4)))),
        wire.pack((1, wire.unpack(words(3)[0], max_bytes=200, what="")[1])),
        wire.pack((0, (99, bytes(64)), (-1, bytes(64)), (3, None))),
        wire.pack(("0", 3)),
        wire.pack((0, *((3, bytes(64)) for _ in range(50)))),
        b"",
        b"\xc1" * 10_000,
    ],
)
def test_no_other_word_counts(said: bytes) -> None:
    ends = ends_of(0)
    for member, word in zip((1, 2), words(1, 2), strict=True):
        ends.hear(member, word)
    ends.hear(5, said)
    assert not ends.over(0) and not ends.over(1)


def test_what_one_peer_can_have_verified_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[int] = []
    monkeypatch.setattr(Roster, "verify", lambda self, member, *args: bool(verified.append(member)))
    ends = ends_of(0)
    for step in range(-5, 5):
        for _ in range(100):
            ends.hear(5, wire.pack((step, *((member, bytes(64)) for member in range(PEERS)))))
    assert len(verified) <= 3 * FRAMES * PEERS
    ends.forget(100)
    assert not ends._looked_at


class Others:
    """A peer's rounds, and the links to two of the others, which the test feeds."""

    def __init__(self, ends: Ends) -> None:
        self.rounds = Rounds(Node, 60.0, ends)  # type: ignore[arg-type]
        self.wires = {peer: Wire() for peer in (1, 2)}
        self.tasks = []
        for peer, line in self.wires.items():
            link = Link(line.dial, (0, 0), self.rounds._changed.set, lambda body, peer=peer: ends.hear(peer, body))
            self.rounds.links[peer] = link
            self.tasks.append(asyncio.ensure_future(link.follow()))

    async def feed(self, peer: int, step: int, number: int, body: bytes, phase: str = "phase") -> None:
        (await self.wires[peer].redialled(1)).feed_data(await frame(step, number, body, phase))

    async def heard(self, **settings: Any) -> set[int]:
        return set(await self.rounds.hear("phase", (1, 2), 2**10, **settings))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_wait_of_the_first_phase_begins_when_the_last_step_is_over() -> None:
    async def test() -> None:
        others = Others(ends_of(0))
        others.rounds.position = (1, 0)
        hearing = asyncio.ensure_future(others.heard(wait=0.0, hold=60.0))
        await others.feed(1, 1, 0, b"here")
        await settle()
        assert not hearing.done(), "one who may still be in the last step is waited for"
        await others.feed(1, 1, 1, ends_of(3).proof(0), OVER)
        for number, word in enumerate(words(3, 4), start=2):
            await others.feed(1, 1, number, word, OVER)
        await settle()
        assert not hearing.done()
        await others.feed(1, 1, 4, words(5)[0], OVER)
        assert await hearing == {1}
        found = await others.rounds.outbox.after((1, 1), 1)
        assert found is not None and found[1].phase == OVER and found[1].body is not None
        elsewhere = ends_of(6)
        elsewhere.hear(0, b"".join(bytes(piece) for piece in found[1].body))
        assert elsewhere.over(0), "it is passed on"

    run(test())


def test_without_the_word_the_first_phase_ends_all_the_same() -> None:
    async def test() -> None:
        others = Others(ends_of(0))
        others.rounds.position = (1, 0)
        await others.feed(1, 1, 0, b"here")
        assert await others.heard(wait=0.0, hold=0.05) == {1}
        assert await others.rounds.outbox.after((1, 1), 1) is not None, "all count their phases alike"

    run(test())


def test_who_still_waits_in_a_step_that_is_over_hurries() -> None:
    async def test() -> None:
        others = Others(ends_of(0))
        others.rounds.position = (0, 9)
        hearing = asyncio.ensure_future(others.heard(wait=60.0, hurry=0.05))
        await others.feed(1, 0, 9, b"said")
        await others.feed(1, 0, 10, words(1)[0], OVER)
        await others.feed(1, 1, 0, b"the next step")
        await settle()
        assert not hearing.done(), "one may lie"
        for number, word in enumerate(words(4, 5), start=1):
            await others.feed(1, 1, number, word, OVER)
        assert await hearing == {1}

    run(test())
