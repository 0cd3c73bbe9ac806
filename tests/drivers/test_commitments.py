"""Ideal commitments come to what hashes come to: the same bans and the same bits, with nothing read for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from btard.attacks import make_attack
from btard.audit.recorder import Recorder
from btard.drivers.local import LocalDriver
from btard.protocol import commitments
from btard.protocol.collusion import Collusion
from btard.protocol.commitments import Ideal
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.ledger import Entry
from btard.task import QuadraticTask
from tests.protocol.matrix import Row, play
from tests.protocol.rows import ROWS

ONE_ROW_PER_ATTACK = list({row.attack: row for row in reversed(ROWS)}.values())


@pytest.mark.parametrize("row", ONE_ROW_PER_ATTACK, ids=str)
def test_every_attack_ends_as_under_hashes(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    def verdicts(entries: list[Entry]) -> list[Entry]:
        return [structs.replace(entry, evidence="") for entry in entries]

    hashed, _ = play(row, 0)
    monkeypatch.setattr(commitments, "tensor_digest", None)
    ideal, _ = play(replace(row, settings={**row.settings, "commitments": "ideal"}), 0)
    assert verdicts(ideal.entries) == verdicts(hashed.entries)
    assert torch.equal(ideal.params, hashed.params)


def test_a_commitment_is_to_the_bytes_and_to_what_they_were() -> None:
    ideal, x = Ideal("run"), torch.tensor([0.0, 1.0, float("nan")])
    slot = ("part", 1, 4, 0)
    first = ideal.of_tensor(slot, x)
    assert ideal.of_tensor(slot, x) == ideal.of_tensor(slot, x[:]) == ideal.of_tensor(slot, x.clone()) == first
    assert ideal.of_tensor(slot, -x) != first  # -0.0
    assert ideal.of_tensor(slot, x.double()) != first and ideal.of_tensor(slot, x[:2]) != first
    assert ideal.of_tensor(("part", 2, 4, 0), x) != first and Ideal("other").of_tensor(slot, x) != first
    x[1] = 2.0
    assert ideal.of_tensor(slot, x) != first
    ideal.forget(5)
    ideal.learn(4, [(slot, x, first)])
    assert ideal.of_tensor(slot, x.clone()) == first


def test_ideal_commitments_cannot_be_audited(tmp_path: Path) -> None:
    config = ProtocolConfig(peers=4)
    with pytest.raises(ValueError, match="mean nothing to an auditor"):
        LocalDriver(config, QuadraticTask(9), recorder=Recorder(tmp_path, config), commitments="ideal")
    with pytest.raises(ValueError, match="'hashed' or 'ideal', got 'none'"):
        LocalDriver(config, QuadraticTask(9), commitments="none")  # type: ignore[arg-type]


def test_what_a_checkpoint_does_not_hold_is_equal_to_nothing() -> None:
    """After a restart the first tensor that is seen must not get the number of one that was seen before."""
    before, x = Ideal("run"), torch.tensor([0.0, 1.0])
    lost, held = (before.of_tensor(("part", 1, 4, part), x) for part in range(2))
    after = Ideal("run")
    after.learn(4, [(("part", 1, 4, 1), x.clone(), held)])
    assert after.of_tensor(("part", 1, 4, 1), x) == held
    other = after.of_tensor(("part", 1, 4, 0), x + 1)
    assert other not in (lost, held) and after.of_tensor(("part", 1, 4, 0), x + 1) == other
    assert after.of_tensor(("part", 1, 5, 0), x) == before.of_tensor(("part", 1, 5, 0), x)  # the next step is as ever


class Scaled(QuadraticTask):
    """The gradient of a machine that is off by a factor."""

    def __init__(self, d: int, factor: float) -> None:
        super().__init__(d)
        self.factor = factor

    def gradients(self, params: torch.Tensor, requests: Sequence[Compute], out: torch.Tensor, **options: Any) -> None:
        super().gradients(params, requests, out, **options)
        out.mul_(self.factor)


def test_an_honest_target_stays_after_a_restart_without_one_of_its_owners() -> None:
    """Mode tolerant: the owner of one of its parts is gone, and with it what the owner had received."""
    banned = set()
    for seed in range(12):
        config = ProtocolConfig(peers=5, byzantine=1, run_id=f"restart {seed}", validation="tolerant")
        tasks = {peer: Scaled(9, 1 + 1e-6 * peer) for peer in range(5)}

        def cohort(config: ProtocolConfig = config, tasks: dict[int, Scaled] = tasks) -> LocalDriver:
            liar = {4: make_attack("silent", Collusion(frozenset({4}), 5), start=0, phase="report")}
            return LocalDriver(config, QuadraticTask(9), behaviours=liar, tasks=tasks, commitments="ideal")

        first, second = cohort(), cohort()
        first.step(torch.ones(9))
        state, tensors = first.state()
        second.restore(state, {name: x.clone() for name, x in tensors.items()}, life=b"second")
        banned |= {peer for entry in second.step(torch.ones(9)).removed for peer in entry.peers}
    assert not banned
