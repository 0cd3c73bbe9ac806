"""Attackers that change tensors in ways that torch does not count: what a cohort remembers must not hide it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.commitments import Hashed
from btard.protocol.config import ProtocolConfig
from btard.protocol.ledger import Entry
from btard.protocol.memory import Memory
from btard.task import QuadraticTask


def through_numpy(tensor: torch.Tensor) -> None:
    tensor.numpy()[0] += 1


def through_data(tensor: torch.Tensor) -> None:
    tensor.data[0] += 1


WAYS = [through_numpy, through_data]


class Overwriter(Behaviour):
    """Writes into what it has committed to, just before it sends it: the same tensor, of the same version."""

    byzantine = True

    def __init__(self, write: Any, kind: str) -> None:
        self.write, self.kind = write, kind

    def active(self, step: int) -> bool:
        return step >= 1

    def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.clone()

    def part(self, ctx: Context, part: int, value: torch.Tensor) -> torch.Tensor:
        if self.kind == "part" and ctx.record.owner(part) != ctx.peer:
            self.write(value)
        return value

    def aggregate_for(self, ctx: Context, recipient: int, part: int, value: torch.Tensor) -> torch.Tensor:
        if self.kind == "aggregate":
            self.write(value)
        return value


@pytest.mark.parametrize("d", [23, 5000])  # small parts are hashed in another way than large ones
@pytest.mark.parametrize("kind", ["part", "aggregate"])
@pytest.mark.parametrize("write", WAYS)
def test_a_write_after_the_commitment_is_seen_by_all(write: Any, kind: str, d: int) -> None:
    def entries(memory: Memory) -> list[Entry]:
        config = ProtocolConfig(peers=5, byzantine=1)
        driver = LocalDriver(config, QuadraticTask(d), behaviours={3: Overwriter(write, kind)}, memory=memory)
        return [entry for _ in range(3) for entry in driver.step(torch.ones(d)).removed]

    found = entries(Memory())
    assert found == entries(Memory(remembers=False))
    # A peer signs its aggregate once for all, as what it announced: what is something else then is not authentic.
    assert [(entry.kind, entry.peers) for entry in found] == [("bad_part" if kind == "part" else "silent", (3,))]


@pytest.mark.parametrize("write", WAYS)
def test_a_hash_is_known_by_the_bytes_alone(write: Any) -> None:
    hashed, slot, tensor = Hashed("run", memory=Memory()), ("part", 0, 1, 2), torch.ones(5)
    before, version = hashed.of_tensor(slot, tensor), tensor._version
    write(tensor)
    assert tensor._version == version
    assert hashed.of_tensor(slot, tensor) == Hashed("run").of_tensor(slot, tensor) != before
    tensor.numpy()[0] = float("nan")
    assert hashed.sound(before, torch.ones(5)) and not hashed.sound(hashed.of_tensor(slot, tensor), tensor)
