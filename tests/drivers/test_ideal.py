"""Ideal commitments come to what hashes come to: the same bans and the same bits, with nothing read for them."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from btard.attacks import make_attack
from btard.audit.recorder import Recorder
from btard.drivers.local import LocalDriver
from btard.drivers.task import QuadraticTask
from btard.protocol import messages
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.ideal import IdealCommitments
from btard.protocol.ledger import Entry
from tests.protocol import cohort
from tests.protocol.matrix import ROWS, Row, play

ONE_ROW_PER_ATTACK = list({row.attack: row for row in reversed(ROWS)}.values())


@pytest.mark.parametrize("row", ONE_ROW_PER_ATTACK, ids=str)
def test_every_attack_ends_as_under_hashes(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    def verdicts(entries: list[Entry]) -> list[Entry]:
        return [replace(entry, evidence="") for entry in entries]

    hashed, _ = play(row, 0)
    monkeypatch.setattr(cohort, "LocalDriver", partial(LocalDriver, commitments="ideal"))
    monkeypatch.setattr(messages, "tensor_digest", None)
    ideal, _ = play(row, 0)
    assert verdicts(ideal.entries) == verdicts(hashed.entries)
    assert torch.equal(ideal.params, hashed.params)


@pytest.mark.parametrize("attack", ["sign_flip", "wrong_aggregate"])
@pytest.mark.parametrize("stop", [3, 4, 5, 6])
def test_what_was_committed_to_before_an_interruption_still_convicts(attack: str, stop: int) -> None:
    members = frozenset({2, 5})

    def make() -> LocalDriver:
        collusion = Collusion(members, 7, seed=3)
        behaviours = {i: make_attack(attack, collusion, start=3) for i in sorted(members)}
        config = ProtocolConfig(peers=7, byzantine=2, run_id="driver test")
        return LocalDriver(config, QuadraticTask(61), behaviours=behaviours, collusion=collusion, commitments="ideal")

    def advance(driver: LocalDriver, params: torch.Tensor, steps: int) -> tuple[torch.Tensor, list[str]]:
        lines: list[str] = []
        for _ in range(steps):
            result = driver.step(params)
            lines += [entry.to_json() for entry in result.removed]
            params = params - 0.1 * result.gradient
        return params, lines

    undisturbed, expected = advance(make(), torch.ones(61), 14)
    first = make()
    params, lines = advance(first, torch.ones(61), stop)
    state, tensors = first.state()
    state, tensors = json.loads(json.dumps(state)), {name: x.clone() for name, x in tensors.items()}
    second = make()
    second.restore(state, tensors)
    params, more = advance(second, params, 14 - stop)
    assert expected and lines + more == expected
    assert torch.equal(params, undisturbed)


def test_a_commitment_is_to_the_bytes_and_to_what_they_were() -> None:
    ideal, x = IdealCommitments("run"), torch.tensor([0.0, 1.0, float("nan")])
    slot = ("part", 1, 4, 0)
    first = ideal.digest(slot, x)
    assert ideal.digest(slot, x) == ideal.digest(slot, x[:]) == ideal.digest(slot, x.clone()) == first
    assert ideal.digest(slot, -x) != first  # -0.0
    assert ideal.digest(slot, x.double()) != first and ideal.digest(slot, x[:2]) != first
    assert ideal.digest(("part", 2, 4, 0), x) != first and IdealCommitments("other").digest(slot, x) != first
    x[1] = 2.0
    assert ideal.digest(slot, x) != first
    ideal.forget(5)
    ideal.learn(slot, x, first)
    assert ideal.digest(slot, x.clone()) == first


def test_ideal_commitments_cannot_be_audited(tmp_path: Path) -> None:
    config = ProtocolConfig(peers=4)
    with pytest.raises(ValueError, match="mean nothing to an auditor"):
        LocalDriver(config, QuadraticTask(9), recorder=Recorder(tmp_path, config), commitments="ideal")
    with pytest.raises(ValueError, match="'hashed' or 'ideal', got 'none'"):
        LocalDriver(config, QuadraticTask(9), commitments="none")  # type: ignore[arg-type]
