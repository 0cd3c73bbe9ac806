"""Ideal commitments come to what hashes come to: the same bans and the same bits, with nothing read for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs

from btard.audit.recorder import Recorder
from btard.drivers.local import LocalDriver
from btard.protocol import commitments
from btard.protocol.commitments import Ideal
from btard.protocol.config import ProtocolConfig
from btard.protocol.ledger import Entry
from btard.task import QuadraticTask
from tests.protocol.matrix import ROWS, Row, play

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
    ideal.learn([(slot, x, first)])
    assert ideal.of_tensor(slot, x.clone()) == first


def test_ideal_commitments_cannot_be_audited(tmp_path: Path) -> None:
    config = ProtocolConfig(peers=4)
    with pytest.raises(ValueError, match="mean nothing to an auditor"):
        LocalDriver(config, QuadraticTask(9), recorder=Recorder(tmp_path, config), commitments="ideal")
    with pytest.raises(ValueError, match="'hashed' or 'ideal', got 'none'"):
        LocalDriver(config, QuadraticTask(9), commitments="none")  # type: ignore[arg-type]
