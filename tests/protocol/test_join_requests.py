"""Requests to join, and what strangers can do with them."""

from __future__ import annotations

import pytest
import torch
from msgspec import structs

from btard.drivers.local import LocalDriver
from btard.protocol import loads
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import digest
from btard.protocol.identity import Identity
from btard.protocol.limits import Limits
from btard.protocol.messages import Join, JoinRequest, Votes
from btard.protocol.signed import Signed
from btard.task import QuadraticTask
from tests.protocol.newcomers import PEERS, Sponsor, cohort, key

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
    driver = cohort(run_id="piling up", byzantine=1, max_absences=20)
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
