"""Attackers that change tensors in ways that torch does not count: what a cohort remembers must not hide it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour, Context, HookError
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


class Rewriter(Behaviour):
    """Sends an honest owner a wrong part, and writes the right numbers into the same tensor before it is shown."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step >= 1

    def part(self, ctx: Context, part: int, body: torch.Tensor) -> torch.Tensor:
        if ctx.record.owner(part) == ctx.peer:
            return body
        self.right, self.sent = body.clone(), body + 1
        return self.sent

    def accuse(self, ctx: Context, claims: Any) -> Any:
        self.sent.copy_(self.right)
        return claims


@pytest.mark.parametrize("commitments", ["hashed", "ideal"])
def test_what_was_sent_stays_what_it_was(commitments: Any) -> None:
    config = ProtocolConfig(peers=7, byzantine=2, run_id="rewrites")
    driver = LocalDriver(config, QuadraticTask(70), behaviours={6: Rewriter()}, commitments=commitments)
    removed = [entry for _ in range(4) for entry in driver.step(torch.ones(70)).removed]
    assert {peer for entry in removed for peer in entry.peers} == {6}


class Lying(torch.Tensor):
    """Says that it is finite."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "sum":
            return torch.zeros(())
        return super().__torch_function__(func, types, args, kwargs or {})


def test_an_attack_that_writes_into_the_gradient_is_refused() -> None:
    class Writes(Rewriter):
        part, accuse = Behaviour.part, Behaviour.accuse

        def gradient(self, ctx: Context, gradient: torch.Tensor) -> torch.Tensor:
            return gradient.mul_(-3)

    config = ProtocolConfig(peers=4, byzantine=1, run_id="written")
    driver = LocalDriver(config, QuadraticTask(70), behaviours={3: Writes()})
    driver.step(torch.ones(70))  # it does not act yet
    with pytest.raises(HookError, match="step 1, peer 3: gradient was written into; return a new tensor"):
        driver.step(torch.ones(70))


ODD = {
    "subclass": lambda x: torch.full_like(x, torch.nan).as_subclass(Lying),
    "with a gradient": lambda x: x.clone().requires_grad_(),
    "negative bit": lambda x: torch.complex(x, -x).conj().imag,
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("hook", ["gradient", "part", "aggregate_for"])
def test_odd_tensors_harm_nobody_else(hook: str, odd: str) -> None:
    class Odd(Rewriter):
        part, accuse = Behaviour.part, Behaviour.accuse

    setattr(Odd, hook, lambda self, ctx, *given: ODD[odd](given[-1]))
    config = ProtocolConfig(peers=7, byzantine=2, run_id="odd")
    driver = LocalDriver(config, QuadraticTask(70), behaviours={6: Odd()})
    try:
        results = [driver.step(torch.ones(70)) for _ in range(4)]
    except HookError:
        return
    assert {peer for result in results for entry in result.removed for peer in entry.peers} <= {6}
    assert all(result.gradient.isfinite().all() for result in results)
