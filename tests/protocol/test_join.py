"""Newcomers, their probation, the state they download, and what Sybils can and cannot do."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from msgspec import structs

from btard.attacks import make_attack
from btard.drivers.links import Links
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.drivers.newcomers import Newcomer
from btard.protocol import loads
from btard.protocol.behaviour import HONEST, Behaviour, Context
from btard.protocol.choose import draw_check
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.download import Download, Vouch, WrongState, agreed_digest, check_download
from btard.protocol.effects import Purpose
from btard.protocol.hashing import digest, stream
from btard.protocol.identity import Identity
from btard.protocol.limits import Limits
from btard.protocol.messages import Claim, CoinCommit, Commit, Join, JoinRequest, Relayed, Signed, Votes, relay_digest
from btard.protocol.peer import Outcome, Peer
from btard.task import QuadraticTask
from scripts.sybil import sybil_price

PEERS, D, T_JOIN = 5, 41, 4


class Cohort(LocalDriver):
    """A local driver under which every peer applies its own outcomes to its own parameters."""

    def __init__(self, config: ProtocolConfig, **options: Any) -> None:
        super().__init__(config, QuadraticTask(D), **options)
        self.params = torch.ones(D)
        self.replicas = {i: torch.ones(D) for i in self.peers}
        self.results: list[StepResult] = []

    def enter(self, identity: Identity, behaviour: Behaviour = HONEST, donor: int | None = None) -> Newcomer:
        """Join; the newcomer's replica starts from what it downloads."""

        def receive(tensors: Mapping[str, torch.Tensor]) -> None:
            assert newcomer.peer is not None
            self.replicas[newcomer.peer] = tensors["parameters"].clone()

        newcomer = self.join(identity, behaviour, donor=donor, receive=receive)
        return newcomer

    def advance(self, steps: int = 1) -> None:
        for _ in range(steps):
            result = self.step(self.params)
            self.params = self.params - 0.1 * result.gradient
            self.results.append(result)
            for peer in self.honest:
                assert torch.equal(self.replicas[peer.id], self.params), f"peer {peer.id} at step {result.step}"
            assert len({peer.ledger.head for peer in self.honest}) == 1

    def advance_until_removal(self, most: int) -> None:
        """Somebody is removed, and one more step; `most` steps if nobody is."""
        while not self.removed and self.peers[0].t < most:
            self.advance()
        self.advance()

    def _agreed(self, honest: Mapping[int, Outcome | None]) -> Outcome:
        for i, outcome in honest.items():
            if outcome is not None:
                self.replicas[i] = self.replicas[i] - 0.1 * outcome.gradient(torch.empty(D))
        return super()._agreed(honest)

    @property
    def removed(self) -> dict[int, str]:
        return {peer: entry.kind for result in self.results for entry in result.removed for peer in entry.peers}

    def computed(self, peer: int) -> int:
        """Gradients of its own batches that `peer` had to compute."""
        requests = self.task.requests  # type: ignore[attr-defined]
        return sum(request.peer == peer and request.purpose is Purpose.TRAIN for request in requests)


def cohort(behaviours: dict[int, Behaviour] | None = None, **settings: Any) -> Cohort:
    options = {name: settings.pop(name) for name in ("collusion", "links", "mode") if name in settings}
    byzantine = sum(behaviour.byzantine for behaviour in (behaviours or {}).values())
    config = ProtocolConfig(**{"peers": PEERS, "byzantine": byzantine, "probation": T_JOIN, **settings})
    return Cohort(config, behaviours=behaviours, **options)


def key(*fields: str | int) -> Identity:
    return Identity.from_seed("newcomer", *fields)


def sign_flip(peers: int = 32, start: int = 0, scale: float = 1000.0) -> Behaviour:
    return make_attack("sign_flip", Collusion(frozenset(range(peers)), peers), start=start, scale=scale)


# An honest newcomer.


@pytest.mark.parametrize("validators", [0, 1])
def test_a_newcomer_downloads_serves_works_and_validates(validators: int) -> None:
    driver = cohort(validators=validators)
    driver.advance(3)
    newcomer = driver.enter(key("honest"))
    driver.advance(1)
    assert newcomer.peer is None and driver.peers[0].probation.keys() == {PEERS}, "admitted, not yet there"
    for served in range(T_JOIN):
        driver.advance(1)
        assert newcomer.peer == PEERS and driver.computed(PEERS) == served + 1
        assert all(PEERS not in result.workers for result in driver.results)
    assert driver.results[-1].active == tuple(range(PEERS + 1))
    driver.advance(40)
    assert not driver.removed
    assert all(PEERS in result.active for result in driver.results[3 + T_JOIN :])
    worked = [PEERS in result.workers for result in driver.results[4 + T_JOIN :]]
    if validators:
        assert 0.5 < np.mean(worked) < 1, "it has been a worker, and now and then a validator"
        tasks = {(r.peer, r.purpose) for r in driver.task.requests}  # type: ignore[attr-defined]
        assert (PEERS, Purpose.TRAIN) in tasks
    else:
        assert all(worked)
    kinds = [(entry.kind, entry.accused) for result in driver.results for entry in result.removed]
    assert kinds == [("join", PEERS), ("member", PEERS)]
    assert driver.peers[PEERS].ledger.head == driver.peers[0].ledger.head


def test_without_newcomers_a_run_is_the_same_with_joining_on_or_off() -> None:
    runs = [cohort(probation=probation) for probation in (None, 5)]
    for run in runs:
        run.advance(6)
    assert torch.equal(runs[0].params, runs[1].params)
    assert [r.workers for r in runs[0].results] == [r.workers for r in runs[1].results]


def test_gradients_on_probation_do_not_go_in() -> None:
    """With tau = inf the aggregate is the mean: it has to be that of the workers alone."""
    driver = cohort(tau=float("inf"))
    driver.enter(key("honest"))
    driver.advance(2)
    result, rows = driver.results[-1], driver.compute.memory
    mean = torch.stack([row for (step, peer, _, _), row in rows.items() if peer != PEERS and step == 1]).mean(0)
    assert any(peer == PEERS for _, peer, _, _ in rows)
    assert torch.allclose(result.gradient, mean, atol=1e-6)


def test_many_newcomers_come_in_one_after_the_other_and_all_become_members() -> None:
    driver = cohort(max_newcomers=2)
    for i in range(5):
        driver.enter(key("crowd", i))
    driver.advance(1)
    assert len(driver.peers[0].probation) == 2
    driver.advance(1)
    assert len(driver.peers[0].probation) == 4
    driver.advance(40)
    assert driver.results[-1].active == tuple(range(PEERS + 5)) and not driver.removed


def test_a_peer_that_came_later_helps_another_one_in() -> None:
    driver = cohort()
    driver.enter(key("first"))
    driver.advance(10)
    second = driver.enter(key("second"), donor=PEERS)
    driver.advance(10)
    assert second.peer == PEERS + 1 and not second.refused
    assert driver.results[-1].active == tuple(range(PEERS + 2))


def test_a_run_with_newcomers_resumes_to_the_same_bits() -> None:
    def start() -> Cohort:
        driver = cohort({1: sign_flip(start=9)}, collusion=Collusion(frozenset({1}), PEERS))
        return driver

    def joiners(driver: Cohort) -> None:
        driver.enter(key("a"))
        driver.enter(key("b"), sign_flip(start=8))
        driver.enter(key("c"))

    whole = start()
    joiners(whole)
    whole.advance(20)
    for stop in (1, 2, 6):
        first = start()
        joiners(first)
        first.advance(stop)
        state, tensors = first.state()
        state = json.loads(json.dumps(state))
        tensors = {name: x.clone() for name, x in tensors.items()}
        second = start()
        with_keys = start()
        joiners(second)
        second.params = first.params.clone()
        second.restore(state, tensors, life=b"resumed")
        second.replicas = dict.fromkeys(second.peers, first.params)
        second.advance(20 - stop)
        assert torch.equal(second.params, whole.params), f"stopped after {stop}"
        assert second.peers[0].ledger.head == whole.peers[0].ledger.head
        if stop > 1:
            with pytest.raises(ValueError, match="call `join` for it first"):
                with_keys.restore(state, tensors, life=b"resumed")


# The state.


class LyingDonor(Behaviour):
    """Serves a state in which something is different, and says that it is the right one."""

    byzantine = True

    def __init__(self, change: Callable[[Download], Download | None]) -> None:
        self.change = change

    def active(self, step: int) -> bool:
        return True

    def serve(self, ctx: Context, download: Download) -> Download | None:
        return self.change(download)

    def vouch(self, ctx: Context, hashed: bytes) -> bytes | None:
        return bytes(32)


def other_parameters(download: Download) -> Download:
    changed = download.tensors["parameters"].clone()
    changed[7] += 1e-6
    return Download(download.state, {"parameters": changed})


FALSIFIED = {
    "parameters": other_parameters,
    "ledger": lambda download: replace(download, state=download.state.replace(b"join", b"jion")),
    "garbage": lambda download: replace(download, state=b"\xff" * 100),
    "extra": lambda download: replace(download, tensors={**download.tensors, "momentum": torch.zeros(D)}),
    "nothing": lambda download: None,
}


@pytest.mark.parametrize("what", FALSIFIED)
def test_a_falsified_state_is_refused_and_another_donor_serves(what: str) -> None:
    donors: dict[int, Behaviour] = {2: LyingDonor(FALSIFIED[what]), 4: LyingDonor(FALSIFIED[what])}
    driver = cohort(donors)
    driver.advance(2)
    newcomer = driver.enter(key("careful"), donor=4)
    driver.advance(20)
    assert newcomer.peer == PEERS and len(newcomer.refused) == 1
    assert "peer 4 served" in newcomer.refused[0]
    assert PEERS in driver.results[-1].active and not driver.removed


def test_the_optimizers_state_is_part_of_what_is_checked() -> None:
    driver = LocalDriver(ProtocolConfig(peers=PEERS, probation=T_JOIN), QuadraticTask(D))
    taken: list[Mapping[str, torch.Tensor]] = []
    driver.join(key("whole"), receive=taken.append)
    driver.step(torch.ones(D), {"momentum": torch.zeros(D)})
    driver.step(torch.full((D,), 0.5), {"momentum": torch.full((D,), 3.0)})
    [tensors] = taken
    assert float(tensors["parameters"][0]) == 0.5 and float(tensors["momentum"][0]) == 3.0


def test_only_the_signatures_of_most_members_make_a_state() -> None:
    identities = [key("member", i) for i in range(5)]
    members = {i: identity.public_key for i, identity in enumerate(identities)}
    newcomer, right, wrong = key("me").public_key, b"r" * 32, b"w" * 32

    def vouch(i: int, hashed: bytes, run: str = "run", whom: bytes = newcomer) -> Vouch:
        return Vouch.create(identities[i], run, i, whom, hashed)

    three = [vouch(i, right) for i in range(3)]
    assert agreed_digest("run", newcomer, members, [vouch(4, wrong), *three]) == right
    with pytest.raises(WrongState, match=r"more than half of the 5 members, only of 2"):
        agreed_digest("run", newcomer, members, three[:2])
    for bad in (
        replace(three[0], member=3),  # in another member's name
        replace(three[0], digest=right[:5]),
        replace(three[0], signature=bytes(64)),
        vouch(3, right, run="another run"),
        vouch(3, right, whom=key("somebody else").public_key),
        three[0],  # twice the same member
    ):
        with pytest.raises(WrongState):
            agreed_digest("run", newcomer, members, [*three[:2], bad])
    with pytest.raises(WrongState):  # who signs two states counts for neither
        agreed_digest("run", newcomer, members, [*three, vouch(2, wrong)])


def test_the_error_names_the_donor_and_both_states() -> None:
    download = Download(b"{}", {"parameters": torch.ones(3)})
    check_download(download, 3, download.digest("run"), "run")
    with pytest.raises(WrongState, match=r"peer 3 served the state [0-9a-f]{16}, but the majority .* ask another"):
        check_download(download, 3, bytes(32), "run")
    for other in (
        Download(b"{}", {"parameters": torch.ones(3).double()}),
        Download(b"{}", {"momentum": torch.ones(3)}),
        Download(b"{ }", {"parameters": torch.ones(3)}),
    ):
        assert other.digest("run") != download.digest("run")
    assert download.digest("other run") != download.digest("run")


# Requests.


def test_forged_foreign_and_used_requests_are_not_taken() -> None:
    driver = cohort()
    run = driver.config.run_id
    peer = driver.peers[0]
    good = JoinRequest.create(key("x"), run)
    assert peer.receive(good) and peer.receive(good) and len(peer.requests) == 1
    assert not peer.receive(JoinRequest.create(key("x2"), "another run"))
    assert not peer.receive(structs.replace(good, key=key("victim").public_key))
    assert not peer.receive(JoinRequest.create(Identity.from_seed(run, 1), run)), "a member's key"


def test_messages_that_name_requests_have_a_size() -> None:
    config = ProtocolConfig(peers=3, max_newcomers=3, probation=1)
    message = Join(tuple(JoinRequest.create(key(i), "run") for i in range(config.max_newcomers)))
    signed = Signed.create(key("me"), bytes(32), 0, 0, "join", message)
    limit = Limits(config.peers, 1).message(Join)
    assert signed.nbytes <= limit and signed.open(Join, limit) == message


def test_keys_that_joined_and_vanished_lengthen_no_limit_and_no_deadline() -> None:
    """Else whoever makes keys, which costs nothing, makes everybody wait longer for ever."""
    driver = cohort(max_newcomers=3, max_absences=2, byzantine=1)

    def wait() -> tuple[int, int]:
        record = driver.peers[0].begin()
        message = driver.peers[0].limits(record).message(Votes)
        return message, loads.of_relays(record, message)

    before = wait()
    for i in range(12):
        for peer in driver.honest:
            peer.receive(JoinRequest.create(key("vanishes", i), driver.config.run_id))
    driver.advance(3)
    assert driver.peers[0].probation and wait() > before, "those on probation may speak"
    driver.advance(12)
    assert len(driver.peers[0].roster.keys) == PEERS + 12 and set(driver.removed.values()) == {"gone"}
    assert wait() == before


class EveryThird(Behaviour):
    """A newcomer that computes nothing, and commits to junk just often enough not to be gone."""

    byzantine = True

    def active(self, step: int) -> bool:
        return True

    def commit(self, ctx: Context, digests: tuple[bytes, ...]) -> tuple[bytes, ...] | None:
        return None if ctx.step % 3 else tuple(bytes(32) for _ in digests)


def test_strangers_do_not_pile_up_on_probation() -> None:
    """One is checked in a step, at most, and one admitted: who is there in every third step alone would become many."""
    driver = cohort(run_id="piling up", byzantine=1)
    most = 0
    for step in range(12):
        driver.enter(key("stranger", step), EveryThird())
        driver.advance(1)
        most = max(most, len(driver.peers[0].probation))
    assert most == PEERS, "there would be more"
    newcomer = driver.enter(key("honest"))
    while newcomer.peer is None and driver.peers[0].t < 40:
        driver.advance(1)
    assert newcomer.peer in driver.peers[0].probation, "they hold their places for a while only"
    assert set(driver.removed.values()) == {"wrong_gradient"} and min(driver.removed) >= PEERS


class Sponsor(Behaviour):
    """Names requests of its own choosing."""

    byzantine = True

    def __init__(self, requests: Sequence[JoinRequest]) -> None:
        self.requests = tuple(requests)

    def active(self, step: int) -> bool:
        return True

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        return (sign(Join(self.requests)), {}) if phase == "join" else (message, {})


@pytest.mark.parametrize(
    "requests",
    [
        [JoinRequest(key("forged").public_key, bytes(64))],
        [JoinRequest.create(key("foreign"), "another run")],
        [JoinRequest.create(key("many", i), "btard") for i in range(2)],
    ],
    ids=["forged", "foreign", "too many"],
)
def test_who_names_what_is_no_request_is_out(requests: list[JoinRequest]) -> None:
    driver = cohort({1: Sponsor(requests)})
    driver.advance(2)
    assert driver.removed == {1: "malformed_join"} and not driver.peers[0].probation


def test_keys_made_to_order_do_not_crowd_out_a_request_that_most_members_hold() -> None:
    def rank(identity: Identity) -> bytes:
        return digest("newcomer", digest("first coin", "btard"), identity.public_key)

    honest = key("honest")
    made = [sybil for i in range(64) if rank(sybil := key("sybil", i)) < rank(honest)]
    driver = cohort({1: Sponsor([JoinRequest.create(made[0], "btard")]), 3: Sponsor([])})
    newcomer = driver.enter(honest)
    driver.advance(2)
    assert newcomer.peer == PEERS


def test_admitted_keys_that_never_show_up_are_gone() -> None:
    driver = cohort({1: Sponsor([JoinRequest.create(key("nobody there"), "btard")])}, max_absences=3)
    driver.advance(8)
    assert driver.removed == {PEERS: "gone"}
    assert driver.peers[0].ledger.entries[-1].step == 3
    assert len(driver.peers[0].roster.keys) == PEERS + 1, "and its key is used up"


def test_a_model_with_fewer_parameters_than_peers_takes_no_more() -> None:
    config = ProtocolConfig(peers=3, probation=1, max_newcomers=3, validators=1)
    driver = LocalDriver(config, QuadraticTask(4))
    for i in range(3):
        driver.join(key("tight", i))
    for _ in range(10):
        result = driver.step(torch.ones(4))
    assert result.active == (0, 1, 2, 3)


def test_joining_is_off_by_default() -> None:
    driver = cohort(probation=None)
    with pytest.raises(ValueError, match="set `probation`"):
        driver.join(key("early"))
    for settings in ({"probation": 0}, {"max_newcomers": 0}, {"max_newcomers": PEERS + 1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            cohort(**settings)


# Byzantine newcomers.


@pytest.mark.parametrize("seed", range(5))
def test_an_attack_on_probation_gets_nowhere(seed: int) -> None:
    """Banned by its first validator; until then the aggregate is the mean of the honest workers, to the bit."""
    driver, alone = (cohort(tau=float("inf"), run_id=f"attack {seed}") for _ in range(2))
    driver.enter(key("attacker"), sign_flip())
    driver.advance(1)
    alone.advance(1)
    driver.advance(4)
    assert driver.removed == {PEERS: "wrong_gradient"}
    [entry] = [entry for result in driver.results for entry in result.removed if entry.peers]
    assert entry.step <= 3, "one newcomer alone is checked at every step"
    for result in driver.results:
        assert float(result.gradient.abs().max()) < 10, "a thousandfold gradient would show in the mean"


class Equivocator(Behaviour):
    """A newcomer with two commitments, one for some members."""

    byzantine = True

    def __init__(self, second_for: Sequence[int], start: int) -> None:
        self.second_for, self.start = second_for, start

    def active(self, step: int) -> bool:
        return step >= self.start

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase != "commit" or payload is None:
            return message, {}
        return message, dict.fromkeys(self.second_for, sign(Commit(payload.digests[::-1])))


class LastRound(Behaviour):
    """A member that keeps the second commitment of a newcomer for one victim and the last round."""

    byzantine = True

    def __init__(self, victim: int) -> None:
        self.victim, self.kept = victim, ()

    def active(self, step: int) -> bool:
        return True

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        if phase != "commit" or round == 0:
            return outgoing
        if round == 1:
            self.kept = next(iter(outgoing.values()), ())
        return {self.victim: self.kept}


@pytest.mark.parametrize("second_for", [(0,), (0, 2), (1,), (1, PEERS)])
@pytest.mark.parametrize("members", [{}, {1: LastRound(2)}])
def test_two_commitments_of_a_newcomer_are_proof_or_nothing(members: dict[int, Behaviour], second_for: Any) -> None:
    driver = cohort(members)
    driver.enter(key("honest"))
    driver.advance(1)
    driver.enter(key("two faces"), Equivocator(second_for, start=3))
    driver.advance(8)  # raises if honest peers, the honest newcomer among them, come to differ
    assert driver.removed in ({PEERS + 1: "equivocation"}, {}) and PEERS in driver.results[-1].active
    if not members:
        assert driver.removed


class ManyFaced(Behaviour):
    """A member that tells each other one, and the newcomers, something else."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step == 3

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase != "coin_commit/0":
            return message, {}
        others = (peer for peer in range(PEERS + 1) if peer != ctx.peer)
        return message, {peer: sign(CoinCommit(bytes([peer]) * 32)) for peer in others}


def test_a_member_of_many_faces_has_one_fate() -> None:
    """Members keep two of its faces, and not all the same ones; a newcomer has to hear of it none the less."""
    driver = cohort({1: ManyFaced()})
    driver.enter(key("honest"))
    driver.advance(6)  # raises if the newcomer comes to another ledger than the members
    assert driver.removed == {1: "equivocation"} and PEERS in driver.peers


class ForgedChain(Behaviour):
    """A member that gets one victim the second commitment in the last round, with a newcomer as the second relayer."""

    byzantine = True

    def __init__(self, victim: int, relayers: Mapping[int, Identity]) -> None:
        self.victim, self.relayers = victim, relayers
        self.sent = 0

    def active(self, step: int) -> bool:
        return True

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        if phase != "commit" or round == 0 or len(ctx.record.newcomers) < 2:
            return outgoing
        if round == 1:
            self.held = [item.message for items in outgoing.values() for item in items]
            return {}
        chains = []
        for message in self.held:
            signed = relay_digest(message.digest(ctx.record.context))
            chains.append(Relayed(message, tuple((i, who.sign(signed)) for i, who in self.relayers.items())))
        self.sent += len(chains)
        return {self.victim: chains}


def test_newcomers_do_not_count_as_relayers() -> None:
    """With b = 1 a commitment that comes in round 2 has to have passed an honest member; newcomers could be anybody."""
    fellow = key("fellow")
    chain = ForgedChain(2, {1: Identity.from_seed("btard", 1), PEERS: fellow})
    driver = cohort({1: chain})
    driver.enter(fellow)
    driver.advance(1)
    driver.enter(key("two faces"), Equivocator((1,), start=2))  # the second one for its accomplice alone
    driver.advance(6)  # raises if the victim comes to another result than the others
    assert chain.sent and set(driver.removed) <= {1}, "it shut itself out: it alone has seen both"


class Whisperer(Behaviour):
    """A member that says something else, or nothing, to the newcomers."""

    byzantine = True

    def __init__(self, newcomers: Sequence[int], phase: str, silent: bool) -> None:
        self.newcomers, self.phase, self.silent = newcomers, phase, silent

    def active(self, step: int) -> bool:
        return True

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        if phase.partition("/")[0] != self.phase or not ctx.record.probation:
            return message, {}
        other = None if self.silent else sign(Commit((bytes(32),)))
        return message, dict.fromkeys(self.newcomers, other)

    def relay(self, ctx: Context, phase: str, round: int, outgoing: Any) -> Any:
        """Tells the newcomers that nothing at all was said."""
        return dict.fromkeys(self.newcomers, ()) if round == 0 else outgoing

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        if recipient not in ctx.record.probation:
            return value
        return None if self.silent else value * 2

    def forward(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor | None:
        return self.aggregate_for(ctx, recipient, part, value)


@pytest.mark.parametrize("silent", [True, False])
@pytest.mark.parametrize("phase", ["join", "commit", "announce", "coin_commit", "coin_reveal", "report", "accuse"])
def test_members_cannot_lead_a_newcomer_astray(phase: str, silent: bool) -> None:
    """It hears what the honest members agree on, and gets every aggregate, whoever keeps its own from it."""
    liars: dict[int, Behaviour] = {i: Whisperer((PEERS,), phase, silent) for i in (1, 2)}
    driver = cohort(liars)
    driver.enter(key("honest"))
    driver.advance(9)
    assert PEERS in driver.results[-1].active or silent
    assert PEERS not in driver.removed
    assert set(driver.removed.values()) <= {"equivocation"}


class Stalling(Behaviour):
    """A newcomer that skips a commitment now and then."""

    byzantine = True

    def __init__(self, steps: Sequence[int]) -> None:
        self.steps = steps

    def active(self, step: int) -> bool:
        return step in self.steps

    def commit(self, ctx: Context, digests: tuple[bytes, ...]) -> None:
        return None


def test_a_missed_commitment_starts_the_probation_again_and_several_end_it() -> None:
    driver = cohort()
    driver.enter(key("lazy"), Stalling([3]))
    driver.advance(3 + T_JOIN)
    assert PEERS not in driver.results[-1].active and not driver.removed
    driver.advance(1)
    assert PEERS in driver.results[-1].active
    gone = cohort(max_absences=2)
    gone.enter(key("lazier"), Stalling([2, 3]))
    gone.advance(5)
    assert gone.removed == {PEERS: "gone"}


def test_colluding_validators_cannot_let_a_free_rider_through() -> None:
    """It needs clean checks by more than b members. A newcomer that computes nothing never becomes one."""
    banned = 0
    for seed in range(10):
        collusion = Collusion(frozenset({1, 3, PEERS}), PEERS + 1)
        helpers: dict[int, Behaviour] = {i: make_attack("never_accuse", collusion) for i in (1, 3)}
        driver = cohort(helpers, run_id=f"free rider {seed}", collusion=collusion, probation=1)
        driver.enter(key("free rider"), make_attack("zero", collusion))
        driver.advance_until_removal(10)
        assert all(PEERS not in result.active for result in driver.results)
        banned += driver.removed == {PEERS: "wrong_gradient"}
    assert banned == 10


class LateChecks(Links):
    """Whoever is to check a newcomer is late with its gradient, for as long as `lasts`."""

    peers: Mapping[int, Peer]

    def __init__(self, lasts: int) -> None:
        super().__init__()
        self.lasts = lasts

    def late(self, step: int, peer: int) -> bool:
        return step < self.lasts and peer in self.peers and self.peers[peer].assignments.get(peer, 0) >= PEERS


def late_checks(lasts: int, **settings: Any) -> Cohort:
    links = LateChecks(lasts)
    driver = cohort(links=links, probation=1, **settings)
    links.peers = driver.peers
    return driver


class ComputesNothing(Behaviour):
    """A newcomer that commits to zeros."""

    byzantine = True

    def active(self, step: int) -> bool:
        return True

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(gradient)


@pytest.mark.parametrize("validation", ["exact", "tolerant"])
def test_a_validator_that_is_late_clears_nobody(validation: str) -> None:
    """It finds nothing, as one that finds the gradient right does: so it says that it has not checked it."""
    driver = late_checks(8, byzantine=1, validation=validation)
    driver.enter(key("free rider"), ComputesNothing())
    driver.advance(8)
    standing = driver.peers[0].probation[PEERS]
    assert standing.served >= 6 and not standing.cleared and not driver.removed
    driver.advance(2)
    assert driver.removed == {PEERS: "wrong_gradient"}, "the first that is in time finds it"


def test_a_late_check_costs_a_newcomer_its_time_alone() -> None:
    driver = late_checks(6, byzantine=1)
    driver.enter(key("honest"))
    driver.advance(6)
    assert driver.peers[0].probation[PEERS].served == 5
    driver.advance(5)
    assert not driver.removed and PEERS in driver.results[-1].active


class Denies(Behaviour):
    """A member that says of every newcomer that it could not check it, or was not shown its gradient."""

    byzantine = True

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def active(self, step: int) -> bool:
        return True

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        target = ctx.assignments.get(ctx.peer, 0)
        first = "accuse/0" not in ctx.record.heard
        return (Claim(ctx.step - 1, target, self.kind),) if target >= PEERS and first else claims


@pytest.mark.parametrize(("kind", "validation"), [("unchecked", "exact"), ("undisclosed", "tolerant")])
def test_members_that_never_clear_anybody_keep_nobody_out(kind: str, validation: str) -> None:
    """More than b honest members are there, each clears it when it is drawn, and who has not yet is drawn first."""
    for seed in range(2):
        liars: dict[int, Behaviour] = {i: Denies(kind) for i in (1, 3)}
        driver = cohort(liars, probation=1, validation=validation, run_id=f"denied {seed}")
        driver.enter(key("honest", seed))
        cleared: set[int] = set()
        while PEERS not in driver.peers[0].active and driver.peers[0].t < 60:
            driver.advance()
            cleared |= driver.peers[0].probation[PEERS].cleared if PEERS in driver.peers[0].probation else set()
        assert PEERS in driver.peers[0].active and not driver.removed
        assert cleared <= {0, 2, 4}, "what denies it clears nobody, whatever became of it"


class DeniesWorkers(Denies):
    """The same of a worker."""

    def accuse(self, ctx: Context, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        target = ctx.assignments.get(ctx.peer)
        return claims if target is None else (Claim(ctx.step - 1, target, self.kind),)


def test_who_says_of_a_worker_that_it_did_not_check_it_is_out() -> None:
    driver = cohort({1: DeniesWorkers("unchecked")})
    driver.advance(12)
    assert driver.removed == {1: "malformed_claims"}


def test_a_newcomer_has_no_vote_and_no_accusation() -> None:
    """Newcomers outnumber the members and accuse and vote as they like: nothing of it is heard."""
    collusion = Collusion(frozenset(range(4, 2 * PEERS)), 2 * PEERS)
    driver = cohort({4: make_attack("silent", collusion, phase="part")}, max_newcomers=4, probation=30)
    for i in range(PEERS):
        driver.enter(key("shouting", i), make_attack("false_accusation", collusion, kind="wrong_gradient"))
    driver.advance(12)
    assert driver.removed == {4: "silent"} and driver.results[-1].active == tuple(range(4))
    assert len(driver.peers[0].probation) == PEERS


def test_who_waits_for_the_end_of_probation_is_caught_like_any_member() -> None:
    driver = cohort(run_id="patient")
    driver.enter(key("patient"), sign_flip(start=1 + T_JOIN))
    driver.advance_until_removal(80)
    assert driver.removed == {PEERS: "wrong_gradient"}
    assert any(PEERS in result.workers for result in driver.results), "it got in"


def test_a_banned_key_cannot_return() -> None:
    old = Identity.from_seed("btard", 2)
    driver = cohort({2: sign_flip(), 1: Sponsor([JoinRequest.create(old, "btard")])})
    driver.advance_until_removal(40)
    assert driver.removed == {2: "wrong_gradient"}
    returning = driver.enter(old)
    fresh = driver.enter(key("new"))
    driver.advance(3)
    assert returning.peer is None and fresh.peer == PEERS, "its old key is refused, another one is not"


def test_a_false_accusation_of_a_newcomer_costs_the_accuser_its_place() -> None:
    class Accuser(Behaviour):
        byzantine = True

        def active(self, step: int) -> bool:
            return True

        def accuse(self, ctx: Context, claims: Any) -> Any:
            from btard.protocol.messages import Claim

            checks = ctx.record.assignments.get(ctx.peer) == PEERS and "accuse/0" not in ctx.record.heard
            served = ctx.last is not None and PEERS in ctx.last.commits and PEERS in ctx.record.probation
            return (Claim(ctx.step - 1, PEERS, "wrong_gradient"),) if served and checks else claims

    driver = cohort({3: Accuser()}, probation=30)
    driver.enter(key("innocent"))
    driver.advance(40)
    assert driver.removed == {3: "false_accusation"}
    assert PEERS in driver.results[-1].active


# What Sybils can do.


def test_every_life_of_a_sybil_costs_a_probation() -> None:
    """Honest gradients per attack: T_join / a, among a members of whom one attacks, with m = 1.

    Each of the a - 1 workers of a step is its target with the same chance, so that it takes a - 1 attacks on average
    until one of them is checked, and there is one more in the step in which that one is judged.
    """
    lives, probation = 4, 3
    prices = [sybil_price(PEERS, probation, lives, seed) for seed in range(10)]
    honest, attacks = (np.array(column, dtype=float) for column in zip(*prices, strict=True))
    assert (honest == lives * probation).all(), "no life is cheaper than a probation"
    members = PEERS + 1
    expected = probation / members
    measured = honest.sum() / attacks.sum()
    # 40 lives, whose lengths scatter about as much as they are long: three standard deviations.
    assert measured == pytest.approx(expected, rel=3 / np.sqrt(10 * lives)), f"{measured:.2f} per step, {expected:.2f}"


@pytest.mark.parametrize("sybils", [2, 3])
def test_nothing_but_their_compute_keeps_well_behaved_sybils_out(sybils: int) -> None:
    """The limit of the heuristic: who pays T_join gradients for each of n identities has n members, then a majority."""
    for seed in range(3):
        driver = cohort(run_id=f"flood {sybils} {seed}", max_newcomers=2)
        for i in range(sybils):
            driver.enter(key("flood", seed, i))
        driver.advance(8 + 3 * sybils)
        numbers = range(PEERS, PEERS + sybils)
        assert set(numbers) <= set(driver.results[-1].active) and not driver.removed
        admission = {e.accused: e.step for e in driver.peers[0].ledger.entries if e.kind == "member"}
        joined = {e.accused: e.step for e in driver.peers[0].ledger.entries if e.kind == "join"}
        assert all(admission[i] - joined[i] >= T_JOIN for i in numbers)


# Draws.


def test_newcomers_are_checked_about_equally_often() -> None:
    counts = {7: 0, 8: 0, 9: 0}
    for i in range(600):
        coin = stream("coins", i).bytes(32)
        pairs = draw_check(coin, dict.fromkeys(counts, ()), (0, 1, 2, 3, 4), {0: 1}, 1)
        assert pairs.pop(0) == 1
        [(validator, target)] = pairs.items()
        assert validator in (2, 3, 4)
        counts[target] += 1
    assert all(150 < count < 250 for count in counts.values())
    coin = stream("coins", 0).bytes(32)
    assert draw_check(coin, {}, (0, 1, 2), {0: 1}, 0) == {0: 1}
    pairs = draw_check(coin, {7: (2, 3)}, (0, 1, 2, 3, 4), {0: 1}, 1)
    assert pairs == {0: 1, 4: 7}, "who has not checked it yet goes first"


@pytest.mark.parametrize(("peers", "byzantine"), [(1, 0), (2, 1), (3, 1), (5, 2), (6, 2)])
def test_the_check_of_a_newcomer_leaves_an_honest_worker(peers: int, byzantine: int) -> None:
    """Where there is no room for one more validator, the check takes the place of one of the others now and then."""
    active, checked = tuple(range(peers)), 0
    usual = {} if peers < 3 else {0: 1} if peers < 6 else {0: 1, 2: 3}
    for i in range(200):
        pairs = draw_check(stream("coins", i).bytes(32), {9: ()}, active, usual, byzantine)
        checked += 9 in pairs.values()
        assert peers - len(pairs) > min(byzantine, (peers - 1) // 2)
        assert len(pairs) >= len(usual), "nobody is checked less than before"
    room = peers - len(usual) - 1 > min(byzantine, (peers - 1) // 2)
    assert checked == 200 if room else 70 < checked < 130 if usual else checked == 0


class AwayToHarm(Behaviour):
    """Is not heard where nobody else is left to work."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step >= 3

    def say(self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Any) -> Any:
        validators = set(ctx.assignments)
        others = set(ctx.active) - validators - {ctx.peer}
        return None if ctx.peer not in validators and not others else message, {}


class Ends(Behaviour):
    """An honest peer whose process ends in step 2."""

    def active(self, step: int) -> bool:
        return step == 2

    def crashed(self, ctx: Context, phase: str) -> bool:
        return ctx.step == 2 and phase == "coin_commit/0"


@pytest.mark.parametrize("seed", range(6))
def test_a_silent_liar_among_three_does_not_stop_the_run_of_a_newcomer(seed: int) -> None:
    driver = cohort({0: AwayToHarm(), 3: Ends(), 4: Ends()}, run_id=f"three {seed}", max_absences=20)
    driver.advance(3)
    assert driver.results[-1].active == (0, 1, 2), "what removed the other two proves nothing: b is as large as it was"
    driver.enter(key("into three", seed))
    driver.advance(8)  # raises NoGradient where the check takes the last honest worker
    assert driver.peers[1].probation or PEERS in driver.results[-1].active


# Together with the rest of the protocol.


@pytest.mark.parametrize("seed", range(4))
def test_lossy_links_and_slow_newcomers(seed: int) -> None:
    driver = cohort(byzantine=1, run_id=f"links {seed}", links=Links(loss=0.1, slow=0.05, seed=seed), max_absences=8)
    driver.enter(key("far away", seed))
    driver.advance(20)  # raises if the newcomer hears anything else than the members
    assert not driver.removed and PEERS in driver.results[-1].active


@pytest.mark.parametrize("mode", ["batched", "per_peer"])
def test_newcomers_under_tolerant_validation(mode: str) -> None:
    """They show their validators what they committed to, and are caught by distances like everybody."""
    driver = cohort(validation="tolerant", mode=mode, max_newcomers=2, byzantine=1)
    driver.enter(key("honest"))
    driver.enter(key("liar"), sign_flip(scale=1.0))
    driver.advance(14)
    numbers = {newcomer.peer: newcomer.behaviour.byzantine for newcomer in driver.joining.values()}
    assert set(driver.removed) == {number for number, byzantine in numbers.items() if byzantine}
    assert set(driver.removed.values()) == {"wrong_gradient"}
    assert {number for number in numbers if number is not None} - set(driver.removed) <= set(driver.results[-1].active)


# Everything at once.


JOINING_ATTACKS = ["sign_flip", "alie", "ipm", "zero", "misreport", "wrong_aggregate", "bad_part", "never_accuse"]


@pytest.mark.parametrize("seed", range(24))
def test_no_mixture_of_newcomers_and_attacks_gets_an_honest_peer_banned(seed: int) -> None:
    rng = stream("joins", seed)
    peers = int(rng.integers(6, 9))
    first = frozenset(int(i) for i in rng.choice(peers, int(rng.integers(0, 3)), replace=False))
    collusion = Collusion(first, peers, seed)

    def attacker() -> Behaviour:
        name = JOINING_ATTACKS[int(rng.integers(len(JOINING_ATTACKS)))]
        return make_attack(name, collusion, start=int(rng.integers(0, 12)), every=int(rng.integers(1, 3)))

    driver = cohort(
        {i: attacker() for i in sorted(first)},
        peers=peers,
        byzantine=2,
        run_id=f"joins {seed}",
        collusion=collusion,
        max_newcomers=2,
        probation=int(rng.integers(1, 6)),
        validators=int(rng.integers(0, 2)) + 1,
    )
    sybils = 0
    newcomers = []
    for i in range(16):
        if rng.random() < 0.3:
            bad = sybils < 2 - len(first) and rng.random() < 0.5
            sybils += bad
            newcomers.append(driver.enter(key("mixture", seed, i), attacker() if bad else HONEST))
        driver.advance(1)
    bad_newcomers = {n.peer for n in newcomers if n.behaviour.byzantine}
    assert set(driver.removed) <= first | bad_newcomers, f"seed {seed}: {driver.removed}"
    assert all(len(newcomer.refused) == 0 for newcomer in newcomers)
