"""The lockstep driver: equal runs to the bit, resuming, both compute modes, and honest peers that differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from btard.attacks import make_attack
from btard.drivers.history import ParameterHistory
from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.commit import NoQuorum
from btard.protocol.config import ProtocolConfig
from btard.protocol.directions import part_directions
from btard.protocol.effects import Purpose
from btard.protocol.hashing import tensor_digest
from btard.protocol.ledger import Entry
from btard.protocol.record import StepRecord
from btard.task import QuadraticTask
from tests.drivers.advance import advance
from tests.protocol.cohort import run_cohort

PEERS, MEMBERS = 7, frozenset({2, 5})


def make_driver(
    attack: str = "sign_flip", mode: str = "batched", folder: Path | None = None, commitments: str = "hashed"
) -> LocalDriver:
    collusion = Collusion(MEMBERS, PEERS, seed=3)
    options = {"delay": 4} if attack == "delayed_gradient" else {}
    behaviours: dict[int, Behaviour] = {i: make_attack(attack, collusion, start=3, **options) for i in sorted(MEMBERS)}
    config = ProtocolConfig(peers=PEERS, byzantine=2, run_id="driver test")
    task = QuadraticTask(61)
    return LocalDriver(
        config,
        task,
        behaviours=behaviours,
        collusion=collusion,
        mode=mode,  # type: ignore[arg-type]
        history_folder=folder,
        repeatable=20,
        commitments=commitments,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("attack", ["sign_flip", "alie", "colluding_aggregate", "delayed_gradient"])
@pytest.mark.parametrize("stop", [1, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("commitments", ["hashed", "ideal"])
def test_a_run_that_stops_and_goes_on_comes_to_the_same_bits(
    attack: str, stop: int, commitments: str, tmp_path: Path
) -> None:
    undisturbed, expected = advance(make_driver(attack, "batched", tmp_path / "a", commitments), torch.ones(61), 14)
    first = make_driver(attack, "batched", tmp_path / "b", commitments)
    params, lines = advance(first, torch.ones(61), stop)
    state, tensors = first.state()
    state, tensors = json.loads(json.dumps(state)), {name: x.clone() for name, x in tensors.items()}
    advance(first, params, 5)  # what is lost with the interruption
    second = make_driver(attack, "batched", tmp_path / "b", commitments)
    second.restore(state, tensors, life=b"resumed")
    params, more = advance(second, params, 14 - stop)
    assert torch.equal(params, undisturbed)
    assert lines + more == expected


def test_equal_configs_give_equal_ledgers_and_bits() -> None:
    (a, first), (b, second) = (advance(make_driver("rop"), torch.ones(61), 25) for _ in range(2))
    assert torch.equal(a, b) and first == second and first


def test_modes_agree_and_only_per_peer_recomputes() -> None:
    batched, per_peer = make_driver(mode="batched"), make_driver(mode="per_peer")
    a, first = advance(batched, torch.ones(61), 30)
    b, second = advance(per_peer, torch.ones(61), 30)
    assert torch.equal(a, b) and first == second and first  # this task's rows do not depend on the batch

    def recomputed(driver: LocalDriver) -> int:
        requests = driver.task.requests  # type: ignore[attr-defined]
        return sum(request.purpose is not Purpose.TRAIN for request in requests)

    assert recomputed(batched) == 0
    assert recomputed(per_peer) >= 29


def test_honest_peers_that_disagree_are_our_bug_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make_driver()
    finish = driver.peers[4]._finish
    monkeypatch.setattr(driver.peers[4], "_finish", lambda *args: replace(finish(*args), coin=b"another coin"))
    with pytest.raises(RuntimeError, match="honest peers 0 and 4 disagree"):
        driver.step(torch.ones(61))


def test_an_honest_peer_that_is_out_in_its_own_view_alone_is_not_lost_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = make_driver()
    peer = driver.peers[4]

    def out(record: StepRecord, already: int) -> None:
        peer.expel(record, peer.id, "silent")

    monkeypatch.setattr(peer, "_finish", out)
    with pytest.raises(RuntimeError, match=r"step 0: honest peer 4 is out in its own view \(silent\)"):
        driver.step(torch.ones(61))


def test_a_peer_that_hears_no_majority_goes_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make_driver()
    monkeypatch.setattr(driver.peers[4].ledger, "head", b"another history")
    with pytest.raises(NoQuorum, match="step 0: heard 1 of 7 peers, more than half are needed"):
        driver.step(torch.ones(61))


def test_applied_gradient_is_the_clipped_mean_of_the_workers() -> None:
    run = run_cohort(peers=5, steps=1, d=33, tau=float("inf"))
    expected = torch.stack(list(run.driver.compute.memory.values())).mean(0)
    assert torch.allclose(run.results[0].gradient, expected, atol=1e-6)


def test_phases_are_timed() -> None:
    seconds = run_cohort(peers=5, steps=1).results[0].seconds
    assert {"gradients", "commit", "part", "aggregate", "coin_reveal", "report", "accuse"} <= set(seconds)
    assert all(spent >= 0 for spent in seconds.values())


class Shared(QuadraticTask):
    """A gradient is a sum that the workers of a step share."""

    def gradients(self, params: torch.Tensor, requests: Any, out: torch.Tensor, *, workers: int = 1, **_: Any) -> None:
        super().gradients(params, requests, out)
        out.div_(workers)


def test_shares_of_a_batch_are_recomputed_among_as_many_workers_also_after_a_resumption() -> None:
    def make() -> LocalDriver:
        collusion = Collusion(MEMBERS, PEERS, seed=3)
        behaviours = {i: make_attack("sign_flip", collusion, start=2) for i in sorted(MEMBERS)}
        config = ProtocolConfig(peers=PEERS, byzantine=2, run_id="shares")
        return LocalDriver(config, Shared(61), behaviours=behaviours, collusion=collusion, mode="per_peer")

    whole, resumed = make(), make()
    a = b = torch.ones(61)
    workers = set()
    while len(whole.honest[0].active) > PEERS - len(MEMBERS):
        workers.add(len(whole.honest[0].active) - len(whole.honest[0].assignments))
        a, lines = advance(whole, a, 1)
        b, same = advance(resumed, b, 1)
        assert lines == same and torch.equal(a, b)
        state, tensors = resumed.state()
        state, tensors = json.loads(json.dumps(state)), {name: tensor.clone() for name, tensor in tensors.items()}
        resumed = make()
        resumed.restore(state, tensors, life=b"resumed")
    assert {peer for entry in whole.honest[0].ledger.entries for peer in entry.peers} == MEMBERS
    assert len(workers) > 2, "choose a run in which the number of workers changes"


def test_a_model_smaller_than_the_cohort_is_refused() -> None:
    with pytest.raises(ValueError, match="3 parameters cannot be shared among 4 peers"):
        LocalDriver(ProtocolConfig(peers=4), QuadraticTask(3))


def test_history_keeps_what_it_promises(tmp_path: Path) -> None:
    history = ParameterHistory(5, 20, tmp_path)
    for step in range(33):
        history.record(step, torch.full((5,), float(step)), 4)
    assert all(torch.equal(history.at(s, 32), torch.full((5,), float(s))) for s in range(13, 33))
    with pytest.raises(LookupError, match="the last 20 are kept"):
        history.at(12, 32)
    with pytest.raises(ValueError, match="give the folder"):
        ParameterHistory(5, 20)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_cpu() -> None:
    cpu, first = advance(make_driver("alie"), torch.ones(61), 20)
    cuda, second = advance(make_driver("alie"), torch.ones(61, device="cuda"), 20)
    assert torch.allclose(cpu, cuda.cpu(), atol=1e-5)
    # Evidence is of other bits, and so are its hashes.
    said = [
        [(entry.step, entry.peers, entry.kind, entry.accusers) for entry in map(Entry.from_json, lines)]
        for lines in (first, second)
    ]
    assert said[0] == said[1] != []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_hashes_and_draws_as_the_cpu() -> None:
    x = torch.randn(2**19, generator=torch.Generator().manual_seed(0))
    assert tensor_digest(x.cuda(), "x", parallel=True) == tensor_digest(x, "x")
    for parts in ((0, 3), (4, 5)):
        here, there = (part_directions(b"coin", *parts, 1001, 2, device) for device in ("cpu", "cuda"))
        assert there.is_cuda and torch.equal(here, there.cpu())
