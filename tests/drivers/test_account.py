"""What a run writes down of each step says who worked, validated, was away or removed."""

from __future__ import annotations

import torch

from btard.attacks import make_attack
from btard.drivers.account import AWAY, IDLE, OUT, VALIDATED, WORKED, Account
from btard.drivers.links import Links
from btard.drivers.local import LocalDriver
from btard.drivers.loop import StepResult
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.record import Probation, StepRecord
from btard.task import QuadraticTask

PEERS = 6


def steps(count: int, links: Links | None = None) -> list[StepResult]:
    """A run of six peers, of which peer 4 attacks from step 2 on."""
    config = ProtocolConfig(peers=PEERS, byzantine=1, run_id="account", relays=1)
    attack = make_attack("sign_flip", Collusion(frozenset({4}), PEERS), start=2)
    driver = LocalDriver(config, QuadraticTask(40), behaviours={4: attack}, links=links)
    params, found = torch.ones(40), []
    for _ in range(count):
        found.append(driver.step(params))
        params = params - 0.1 * found[-1].gradient
    return found


def test_roles_checks_and_accusations_are_those_of_the_step() -> None:
    found = steps(30)
    accounts = [step.account for step in found]
    assert all(account is not None for account in accounts)
    assert accounts[0] == Account(WORKED * PEERS, sent=accounts[0].sent)
    removed = {entry.accused: entry for step in found for entry in step.removed}
    assert removed.keys() == {4}, "the attacker is drawn within these steps"
    for step, account in zip(found[1:], accounts[1:], strict=True):
        ((validator, target),) = account.checks
        gone = 4 in removed and step.step > removed[4].step
        assert account.roles[validator] == VALIDATED and account.roles.count(VALIDATED) == 1 and target != validator
        assert account.roles[4:5] == (OUT if gone else account.roles[4])
        assert account.accused == ((4,) if step.step == removed[4].step else ())
        for peer, total in step.sent.items():
            assert sum(account.sent[peer].values()) == total
        assert account.fields(0)["bytes"]["commit"] > 0 and "skipped" not in account.fields()


def test_a_peer_whose_gradient_is_late_is_here_without_one() -> None:
    roles = {letter for step in steps(6, Links(slow=0.5, seed=3)) for letter in step.account.roles}
    assert {WORKED, IDLE} <= roles


def test_who_was_not_heard_is_away_and_a_newcomer_is_on_probation() -> None:
    record = StepRecord(3, (0, 1, 2, 4), {2: 0, 1: 0}, b"", standings={5: Probation(1, 0, frozenset())})
    record.here, record.workers = (0, 2, 4), (0,)
    account = Account.of(record, {})
    assert account.roles == WORKED + AWAY + VALIDATED + OUT + IDLE + "p"
    assert account.checks == ((2, 0),), "the validator that is away checks nothing"
