"""A peer that is behind the others gets the aggregates that liars leave out of what they send it."""

from __future__ import annotations

import time

import pytest
import torch

from btard.drivers.letters import on_device
from btard.protocol.behaviour import HONEST, Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.effects import Fetch
from btard.protocol.limits import packet_limit
from btard.protocol.signed import Packet
from btard.swarm.aggregates import DOOR, Aggregates, fetch_aggregates
from btard.swarm.fetch import answer
from btard.swarm.links import Refused
from tests.swarm.cohort import QUICK, Cohort, Fault, Member

BEHIND, LIAR = 3, 1


class LeavesOut(Behaviour):
    """Does all as it should, but sends one peer no aggregate in step 1."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step == 1

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return None if recipient == BEHIND else value


class Liars(Cohort):
    def behaviour(self, number: int) -> tuple[Behaviour, Collusion | None]:
        return (LeavesOut() if number == LIAR else HONEST), None


def slow(member: Member) -> None:
    member.task.slow = 2 * QUICK.phase


def until_the_others_have_left(member: Member) -> None:
    deadline = time.monotonic() + 30
    while not member.driver.rounds.ends.over(1) and time.monotonic() < deadline:
        time.sleep(0.01)
    member.task.slow = 0.0


def test_what_a_liar_leaves_out_for_a_peer_that_is_behind_it_fetches() -> None:
    with Liars(peers=5, byzantine=1, max_absences=4, validators=0) as cohort:
        faults = {"compute": slow, "aggregate": until_the_others_have_left}
        cohort.faults = tuple(Fault(BEHIND, 1, phase, happen) for phase, happen in faults.items())
        cohort.run(4)
        assert [member.end for member in cohort.members] == [None] * 5
        assert (1, "fetch") in cohort.members[BEHIND].at and (1, "fetch") not in cohort.members[0].at
        assert cohort.removed() == {}
        assert all(torch.equal(m.params, cohort.members[0].params) for m in cohort.members)


async def begun_and_left(door: Aggregates, key: bytes, *arguments: int) -> None:
    """A stream that breaks off before anything of it was read."""

    class Gone:
        def write(self, data: bytes) -> None:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await door._give(key, [*arguments], None, Gone())  # type: ignore[arg-type]


def test_aggregates_come_from_whoever_gives_the_announced_ones() -> None:
    with Cohort(peers=4, validators=0) as cohort:
        cohort.run(3)
        asking, *others = cohort.members
        peer = asking.driver.peer
        record, keys = peer.last, peer.roster.keys
        assert record is not None
        parts, limit = (0, 2), packet_limit(record, [0], "aggregate")
        announced = {part: record.aggregates[part].clone() for part in parts}
        lasts = [member.driver.peer.last for member in others]
        for last in lasts:  # they have not heard the one that asks
            assert last is not None
            last.here = (1, 2, 3)

        def fits(part: int, packet: Packet) -> bool:
            return isinstance(packet.body, torch.Tensor) and torch.equal(packet.body, announced[part])

        def fetched(step: int = 2, limit: int = limit) -> dict[int, Packet]:
            members = {i: keys[i] for i in peer.active if i != peer.id}
            wanted = Fetch(parts, limit, fits)
            return asking.node.run(fetch_aggregates(asking.driver.doors, members, keys[peer.id], step, wanted, QUICK))

        for lying in range(4):
            for member in others:
                member.driver.aggregates.restart()
            found = fetched()
            assert found.keys() == (set(parts) if lying < 3 else set())
            assert all(on_device(torch.device("cpu"), packet) is packet for packet in found.values())
            if lying < 3:
                held = others[lying].driver.peer.last
                assert held is not None
                held.aggregates[2] = held.aggregates[2] + 1
        for step, size in ((0, limit), (7, limit), (2, 8)):
            assert fetched(step, size) == {}

        async def ask(*arguments: int) -> None:
            async with asking.driver.doors.visit(keys[1], DOOR, *arguments) as (reader, _):
                await answer(reader, 2**10, "aggregate", 2)

        for arguments in ((2, 0, 0), (2, 99), (1, 0)):
            with pytest.raises(Refused, match="aggregates: I do not have them"):
                asking.node.run(ask(*arguments))

        others[0].driver.aggregates.restart()
        for part in parts:  # each once
            asking.node.run(ask(2, part))
            with pytest.raises(Refused, match="aggregates: you have had them"):
                asking.node.run(ask(2, part))

        others[0].driver.aggregates.restart()
        for _ in range(2):  # nobody has anything made more often, however soon it goes away
            asking.node.run(begun_and_left(others[0].driver.aggregates, keys[peer.id], 2, parts[0]))
        with pytest.raises(Refused, match="aggregates: you have had them"):
            asking.node.run(ask(2, parts[0]))
        assert lasts[0] is not None
        lasts[0].here = (0, 1, 2, 3)
        with pytest.raises(Refused, match="aggregates: you had a say in that step"):
            asking.node.run(ask(2, 1))
        assert all(member.driver.aggregates._streams == {} for member in others)
