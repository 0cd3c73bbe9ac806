"""The swarm's driver against the simulator, and against peers that are slow, stopped, killed or cut off."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import torch

from btard.drivers.loop import Fallen
from btard.protocol.behaviour import HONEST
from btard.protocol.commit import NoGradient
from btard.protocol.identity import Identity, Roster
from btard.protocol.messages import JoinRequest
from btard.protocol.peer import Peer
from btard.swarm import frames
from btard.swarm.cancel import cancel
from btard.swarm.deadlines import Deadlines
from btard.swarm.doors import Doors
from tests.swarm.cohort import QUICK, Cohort, Fault, Member
from tests.swarm.daemons import Lodger

EQUAL = [
    (None, {}, 0, 4),
    ("sign_flip", {}, 1, 12),
    ("label_flip", {}, 1, 8),
    ("random_direction", {}, 1, 8),
    ("wrong_aggregate", {}, 1, 4),
    ("equivocate", {"phase": "report"}, 1, 4),
    ("false_accusation", {"kind": "misreport"}, 1, 4),
    ("bad_part", {"recipients": "one"}, 1, 4),
    ("wrong_reveal", {}, 1, 4),
    ("lying_votes", {}, 1, 6),
]


@pytest.mark.parametrize(("attack", "options", "byzantine", "steps"), EQUAL, ids=[str(case[0]) for case in EQUAL])
def test_bans_and_parameters_are_those_of_the_simulator(
    attack: str | None, options: dict[str, object], byzantine: int, steps: int
) -> None:
    with Cohort(peers=5, byzantine=byzantine, attack=attack, options=options) as cohort:
        cohort.run(steps)
        params, simulated = cohort.simulate(steps)
        for member in cohort.honest:
            assert member.end is None
            assert torch.equal(member.params, params)
            assert member.driver.peer.ledger.head == simulated.honest[0].ledger.head
        if attack not in (None, "label_flip", "sign_flip", "random_direction", "lying_votes"):
            assert cohort.removed().keys() == cohort.attackers


@pytest.mark.parametrize("denied", ["one", "all"])
def test_whoever_lacks_a_signature_is_shown_the_certificate_by_those_that_have_gone_on(denied: str) -> None:
    """The honest peers are in different rounds of the same phase, and come to what they come to in one process."""
    with Cohort(peers=5, byzantine=2, attack="no_certificate", options={"denied": denied}) as cohort:
        cohort.run(3)
        params, simulated = cohort.simulate(3)
        for member in cohort.honest:
            assert member.end is None and torch.equal(member.params, params)
            assert member.driver.peer.ledger.head == simulated.honest[0].ledger.head
        assert not cohort.removed()
        seen = {m.driver.peer.id: {phase for step, phase in m.at if step == 2} for m in cohort.honest}
        relays = {i: {phase for phase in phases if "/relay/2" in phase} for i, phases in seen.items()}
        denied_to = {i for i, phases in relays.items() if phases}
        assert denied_to == ({min(relays)} if denied == "one" else set(relays)), relays
        last = {phase for phases in seen.values() for phase in phases if "/relay/3" in phase}
        assert bool(last) is (denied == "all"), "with a certificate shown in the first round, the rest are left out"


def test_without_failures_no_peer_takes_part_in_a_round_of_relays() -> None:
    with Cohort(peers=5, byzantine=2, attack="zero", start=9) as cohort:
        cohort.run(2)
        for member in cohort.members:
            waits = [phase for step, phase in member.at if step == 1 and phase not in ("compute", "judge")]
            heard = [phase for phase in waits if "/relay/" not in phase]
            assert len(heard) == 7 and set(waits) - set(heard) == {p for p in waits if p.endswith("/relay/1")}


@pytest.mark.parametrize("attack", ["ipm", "alie"])
def test_colluders_show_each_other_their_gradients(attack: str) -> None:
    with Cohort(peers=7, byzantine=3, attack=attack, start=0, tau=float("inf")) as cohort:
        seen: dict[int, tuple[int, ...]] = {}

        def look(member: Member) -> None:
            assert member.driver.fellows.collusion is not None
            seen[member.driver.peer.id] = member.driver.fellows.collusion.honest_peers

        cohort.faults = tuple(Fault(peer, 0, "commit", look) for peer in cohort.attackers)
        cohort.run(1)
        assert seen == {peer: tuple(sorted(cohort.attackers)) for peer in cohort.attackers}
        sent = [cohort.members[peer].driver.peer.last.commits[peer].digests for peer in cohort.attackers]  # type: ignore[union-attr]
        assert len(set(sent)) == 3  # hashes name their peer, whatever they are of


PHASES = ["compute", "commit", "part", "aggregate", "coin_reveal/0", "report", "accuse/0", "accuse/0/compare"]


@pytest.mark.parametrize("phase", PHASES)
def test_the_others_go_on_when_a_peer_is_killed(phase: str) -> None:
    fault = Fault(2, 1, phase, Member.kill)
    with Cohort(peers=5, byzantine=1, faults=(fault,), max_absences=2) as cohort:
        started = time.monotonic()
        cohort.run(5)
        assert {m.driver.peer.id for m in cohort.done} == {0, 1, 3, 4}
        assert len({m.driver.peer.ledger.head for m in cohort.done}) == 1
        assert all(torch.equal(m.params, cohort.members[0].params) for m in cohort.done)
        assert cohort.removed().keys() <= {2} and cohort.members[0].active[-1] == (0, 1, 3, 4)
        # Nobody waits for a deadline: whoever cannot be reached is given up.
        assert time.monotonic() - started < 5 * QUICK.phase


def test_a_validator_that_is_killed_goes_alone() -> None:
    with Cohort(peers=5, byzantine=1) as cohort:
        cohort.run(1)
        [validator] = cohort.members[0].driver.peer.assignments
        cohort.faults = (Fault(validator, 1, "compute", Member.kill),)
        cohort.run(3)
        witness = next(m for m in cohort.done)
        # It was not heard in the roll call, so it is out of the step and owes nothing in it: it is absent until it has
        # been for too long, like a worker.
        assert cohort.removed(witness.driver.peer.id) == {validator: "gone"}


def test_a_slow_peer_is_absent_and_comes_back() -> None:
    with Cohort(peers=5, byzantine=1, max_absences=4) as cohort:

        def slow(member: Member) -> None:
            member.task.slow = 2 * QUICK.phase

        def quick(member: Member) -> None:
            member.task.slow = 0.0

        cohort.faults = (Fault(3, 1, "compute", slow), Fault(3, 2, "compute", quick))
        cohort.run(4)
        assert all(m.end is None for m in cohort.members)
        assert cohort.removed() == {}
        assert len({m.driver.peer.ledger.head for m in cohort.members}) == 1
        assert all(torch.equal(m.params, cohort.members[0].params) for m in cohort.members)


def test_a_peer_whose_gradient_never_comes_in_time_is_gone() -> None:
    with Cohort(peers=5, byzantine=1, max_absences=2) as cohort:
        cohort.members[4].task.slow = 60.0
        cohort.run(4)
        assert cohort.removed() in ({4: "gone"}, {4: "silent"})
        assert isinstance(cohort.members[4].end, Exception)


def test_a_banned_peer_is_refused_at_every_door() -> None:
    with Cohort(peers=5, byzantine=1, attack="wrong_aggregate") as cohort:
        cohort.run(3)
        [banned] = cohort.attackers
        member, honest = cohort.members[banned], cohort.members[0]
        assert cohort.removed() == {banned: "wrong_aggregate"}
        key = honest.driver.peer.identity.public_key
        for door in ("follow", "fellow"):
            with pytest.raises(Exception, match="banned: wrong_aggregate, step 1"):
                member.node.run(member.driver.doors.knock(key, door, 0, 0))
        assert honest.driver.doors.refused["banned"] >= 2


def test_a_peer_that_the_others_have_removed_finds_out() -> None:
    """It was deaf for a while: its own view of the step is not theirs."""
    with Cohort(peers=5, byzantine=1) as cohort:
        resume = threading.Event()

        def stop(member: Member) -> None:
            resume.wait(30)

        cohort.faults = (Fault(2, 1, "report", stop),)
        watcher = threading.Thread(target=lambda: (_until(lambda: 2 in cohort.removed()), resume.set()))
        watcher.start()
        cohort.run(4)
        watcher.join()
        assert cohort.removed() == {2: "silent"}
        assert {m.driver.peer.id for m in cohort.done} == {0, 1, 3, 4}
        end = cohort.members[2].end
        assert end is not None and ("silent" in str(end) or "heard" in str(end) or isinstance(end, Fallen))


@pytest.mark.parametrize("lie", ["gone", "ahead", "banned"])
def test_the_word_of_newcomers_is_no_members(lie: str) -> None:
    """Their keys cost nothing: with b + 1 of them, strangers could tell everybody to stop."""

    async def follow(key: bytes, arguments: list[Any], reader: Any, writer: Any) -> None:
        await frames.send(writer, ("gone", 2**30) if lie == "gone" else (2**30, 0, "join", -1))
        await reader.read()

    with Cohort(peers=3, probation=5) as cohort:
        stranger = Identity.from_seed("stranger")
        node = Lodger(stranger, initial_peers=cohort.members[0].node.addresses[:1]).start()
        try:
            doors = Doors(node, cohort.config.run_id, {"a": 1})
            doors.add("follow", follow)
            doors.banned = {identity.public_key: "gone" for identity in cohort.identities if lie == "banned"}
            node.run(doors.open())
            for member in cohort.members:
                member.driver.peer.receive(JoinRequest.create(stranger, cohort.config.run_id))
            cohort.run(3)
            assert [member.end for member in cohort.members] == [None] * 3
            assert 3 in cohort.members[0].driver.peer.probation
        finally:
            node.close()


def test_a_minority_that_is_cut_off_stops() -> None:
    with Cohort(peers=5, byzantine=1, max_absences=9) as cohort:
        cohort.run(1)
        cut = {3, 4}
        together = threading.Barrier(5, timeout=60)  # nobody may have heard what another says in this step already

        def dial_nobody(member: Member) -> None:
            together.wait()
            others = {0, 1, 2} if member.driver.peer.id in cut else cut
            member.node.run(_forget(member, others))
            together.wait()

        cohort.faults = tuple(Fault(peer, 1, "compute", dial_nobody) for peer in range(5))
        cohort.run(3)
        ends = {m.driver.peer.id: m.end for m in cohort.members}
        assert all("more than half are needed" in str(ends[peer]) for peer in cut)
        assert all(ends[peer] is None for peer in (0, 1, 2)) and cohort.removed().keys() <= cut


def test_links_belong_to_keys() -> None:
    """In another life of the run a number may be somebody else's: a newcomer's that was admitted in its place."""
    with Cohort(peers=4) as cohort:
        driver = cohort.members[0].driver
        before, peer = dict(driver.rounds.links), driver.peer
        keys = (*peer.roster.keys[:3], Identity.from_seed("another", 3).public_key)
        driver.restart(Peer(0, peer.identity, Roster(keys), peer.config, cohort.d, HONEST), behind=True)
        kept = [number for number, link in driver.rounds.links.items() if link is before[number]]
        assert sorted(driver.rounds.links) == [1, 2, 3] and kept == [1, 2]


def test_nobody_with_a_gradient_is_said_so() -> None:
    deadlines = QUICK.__class__(compute=0.2, phase=0.5, message=0.1, uplink=8, give_up=0.5)
    with Cohort(peers=3, deadlines=deadlines) as cohort:
        for member in cohort.members:
            member.task.slow = 30.0
        cohort.run(1)
        assert all(isinstance(m.end, NoGradient) for m in cohort.members)


class Uplink:
    """The way out of a member, `rate` bytes per second for all that it says to all others."""

    def __init__(self, member: Member, rate: float) -> None:
        self.rate, self._free = rate, 0.0
        follow = member.driver.followers._follow

        async def slowly(key: bytes, arguments: list[Any], reader: Any, writer: Any) -> None:
            await follow(key, arguments, reader, SlowWriter(self, writer))

        member.driver.doors.add("follow", slowly, members_only=True)

    async def carry(self, size: int) -> None:
        now = time.monotonic()
        self._free = max(self._free, now) + size / self.rate
        await asyncio.sleep(self._free - now)


class SlowWriter:
    """A stream on which bytes go as they would on that way out."""

    def __init__(self, uplink: Uplink, writer: Any) -> None:
        self.uplink, self.writer, self.waiting = uplink, writer, 0

    def write(self, data: Any) -> None:
        self.waiting += len(data)
        self.writer.write(data)

    async def drain(self) -> None:
        size, self.waiting = self.waiting, 0
        await self.uplink.carry(size)
        await self.writer.drain()

    def is_closing(self) -> bool:
        return bool(self.writer.is_closing())


def test_a_trial_over_slow_uplinks_costs_nobody_honest_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts are on trial: each owner shows four rows to four peers, four times what a gradient takes."""
    d, uplink, took = 20_000, 1.0, {}
    monkeypatch.setattr(frames, "CHUNK", 2**11)
    deadlines = Deadlines(compute=5.0, phase=0.7, message=0.05, uplink=0.9 * uplink, give_up=0.5)
    with Cohort(peers=5, byzantine=1, attack="misreport", d=d, deadlines=deadlines) as cohort:
        for member in cohort.members:
            Uplink(member, 1e6 * uplink / 8)

        def shows(member: Member) -> None:
            took[member.driver.peer.id] = time.monotonic()

        def has_seen(member: Member) -> None:
            took[member.driver.peer.id] -= time.monotonic()

        witnesses = [member.driver.peer.id for member in cohort.honest]
        cohort.faults = tuple(
            fault for i in witnesses for fault in (Fault(i, 1, "evidence/0", shows), Fault(i, 1, "lacking/0", has_seen))
        )
        cohort.run(2)
        assert all(member.end is None for member in cohort.honest)
        assert {kind for peer, kind in cohort.removed().items() if peer in cohort.attackers} == {"misreport"}
        assert cohort.removed().keys() == cohort.attackers
        phases = 1 + [phase for step, phase in cohort.honest[0].at if step == 1].index("evidence/0")
        assert -min(took.values()) > deadlines.phase + phases * deadlines.message, "as long as with no load at all"


async def _forget(member: Member, others: set[int]) -> None:
    """No frame of the others arrives any more, as if the cable were cut."""
    for other in others & member.driver.rounds.links.keys():
        link = member.driver.rounds.links[other]
        await cancel(member.driver.rounds._tasks[other])
        link.down_since = time.monotonic() - 60


def _until(holds: object, timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not holds() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.02)
