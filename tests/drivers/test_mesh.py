"""Ranks as threads of one process, which starts at once: rounds, resuming, falling out in the middle of a step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from btard.attacks import make_attack
from btard.audit import audit
from btard.audit.recorder import Recorder
from btard.drivers.collective import CollectiveDriver
from btard.drivers.local import LocalDriver
from btard.drivers.loop import Fallen
from btard.drivers.mesh import INLINE, Mesh, RankLost
from btard.protocol.behaviour import Behaviour, Context
from btard.protocol.collusion import Collusion
from btard.protocol.commit import NoGradient
from btard.protocol.config import ProtocolConfig
from btard.protocol.ledger import Entry, Ledger
from btard.protocol.signed import Signed
from btard.task import QuadraticTask
from tests.drivers.advance import advance

D = 61


def in_ranks(work: Callable[[Mesh], Any], size: int, store: dist.Store | None = None, timeout: float = 20) -> list[Any]:
    """`work(mesh)` of every rank, each in a thread; its result, or the exception that it raised."""
    store = store or dist.HashStore()

    def run(rank: int) -> Any:
        try:
            return work(Mesh(store, rank, size, timeout))
        except Exception as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


@pytest.mark.parametrize("length", [1, INLINE, INLINE + 1, 70_000])
def test_letters_arrive_up_to_the_recipients_limit(length: int) -> None:
    """Rank i takes at most length + 1 - i bytes; everybody sends everybody `length + recipient - 1` of its own."""

    def work(mesh: Mesh) -> dict[int, bytes]:
        letters = {to: (bytes([mesh.rank]) * length, bytes([9]) * (to - 1)) for to in mesh.others if to}
        came = mesh.round("test", letters, length if mesh.rank < 2 else length + 7)
        assert came.running == {0, 1, 2} and set(came.phases.values()) == {"test"}
        return {sender: bytes(letter) for sender, letter in came.letters.items()}

    nothing, exactly, more = in_ranks(work, 3)
    assert nothing == {}
    assert exactly == {0: bytes(length), 2: b"\2" * length}
    assert more == {0: bytes(length) + b"\x09", 1: b"\1" * length + b"\x09"}


def test_what_is_longer_than_the_limit_is_not_read() -> None:
    def work(mesh: Mesh) -> list[int]:
        sizes = ((10, 2000), (10, 2000), (11, 2001))[mesh.rank]
        limits = dict(zip(sizes, (10, 2000), strict=True))
        came = [mesh.round("x", dict.fromkeys(mesh.others, (bytes(n),)), limit) for n, limit in limits.items()]
        return [sorted(one.letters) for one in came]

    assert in_ranks(work, 3) == [[[1], [1]], [[0], [0]], [[0, 1], [0, 1]]]


def test_long_letters_go_at_once_where_as_long_ones_went_before() -> None:
    """Ranks may be in different phases, and letters longer, shorter or missing: all arrive."""

    def work(mesh: Mesh) -> list[int]:
        transfers: list[int] = []
        transfer, counts = mesh._transfer, []

        def counted(*args: Any) -> None:
            transfers.append(1)
            transfer(*args)

        mesh._transfer = counted  # type: ignore[method-assign]
        for length in (5000, 5000, 4000, 9000, 9000, 0, 9000, 9000):
            transfers.clear()
            mesh.round("short", dict.fromkeys(mesh.others, (b"x",)), 10)
            letters = {to: (bytes([mesh.rank]) * (length - to),) for to in mesh.others if length}
            came = mesh.round("elsewhere" if mesh.rank == 1 else "long", letters, 10_000)
            assert {rank: bytes(letter) for rank, letter in came.letters.items()} == (
                {rank: bytes([rank]) * (length - mesh.rank) for rank in mesh.others} if length else {}
            )
            counts.append(len(transfers))
        return counts

    assert in_ranks(work, 3) == [[3, 3, 2, 3, 3, 2, 2, 2]] * 3


def test_a_rank_that_never_comes_is_named() -> None:
    def work(mesh: Mesh) -> None:
        mesh.step = 7
        mesh.gather("first", b"x")
        if mesh.rank != 1:
            mesh.gather("second", b"x")

    results = in_ranks(work, 3, timeout=1)
    assert results[1] is None
    for lost in (results[0], results[2]):
        assert isinstance(lost, RankLost) and lost.missing == (1,)
        assert str(lost) == "step 7, phase second: rank 1 did not answer within 1 s"


def test_a_rank_that_leaves_at_once_does_not_break_the_connecting_of_others() -> None:
    for _ in range(5):
        assert in_ranks(lambda mesh: None, 12) == [None] * 12


def test_as_many_ranks_as_peers() -> None:
    [error, _] = in_ranks(lambda mesh: CollectiveDriver(ProtocolConfig(peers=3), QuadraticTask(D), mesh), 2)
    assert isinstance(error, ValueError) and "3 peers need as many processes, got 2" in str(error)


Cohort = tuple[dict[int, Behaviour], Collusion | None]


def honest_cohort() -> Cohort:
    return {}, None


def compare(config: ProtocolConfig, cohort: Callable[[], Cohort], steps: int) -> tuple[LocalDriver, list[Any]]:
    """Both drivers on the same run: all ranks that stay come to the local driver's parameters and ledger."""
    behaviours, collusion = cohort()
    local = LocalDriver(config, QuadraticTask(D), behaviours=behaviours, collusion=collusion, mode="per_peer")
    params, lines = advance(local, torch.ones(D), steps)

    def work(mesh: Mesh) -> Any:
        behaviours, collusion = cohort()
        driver = CollectiveDriver(config, QuadraticTask(D), mesh, behaviours=behaviours, collusion=collusion)
        return advance(driver, torch.ones(D), steps)

    results = in_ranks(work, config.peers)
    for rank, result in enumerate(results):
        if rank in local.peers:
            assert not isinstance(result, Exception), result
            assert torch.equal(result[0], params) and result[1] == lines
        else:
            assert isinstance(result, Fallen)
    return local, results


class Crash(Behaviour):
    """Dies in a phase of step 1."""

    byzantine = True

    def __init__(self, phase: str) -> None:
        self.phase = phase

    def active(self, step: int) -> bool:
        return step == 1

    def crashed(self, ctx: Context, phase: str) -> bool:
        return phase == self.phase


@pytest.mark.parametrize("phase", ["commit", "part", "aggregate", "coin_reveal/0", "report", "accuse/0"])
def test_the_others_go_on_when_a_peer_falls_out_in_the_middle_of_a_step(phase: str) -> None:
    config = ProtocolConfig(peers=5, byzantine=1, run_id="crash")
    local, _ = compare(config, lambda: ({3: Crash(phase)}, None), steps=5)
    assert sorted(local.peers) == [0, 1, 2, 4]


class TwoFaced(Behaviour):
    """Commits to another coin towards peer 0 than towards the rest."""

    byzantine = True

    def active(self, step: int) -> bool:
        return step == 1

    def say(
        self, ctx: Context, phase: str, payload: Any, message: Signed | None, sign: Callable[[Any], Signed]
    ) -> tuple[Signed | None, Mapping[int, Signed | None]]:
        return message, {0: sign(type(payload)(bytes(32)))} if phase == "coin_commit/0" else {}


def test_faces_reach_the_one_they_are_for() -> None:
    local, _ = compare(ProtocolConfig(peers=5, byzantine=1, run_id="faces"), lambda: ({3: TwoFaced()}, None), steps=3)
    assert [entry.kind for entry in local.peers[0].ledger.entries] == ["equivocation"]


def test_the_radius_that_follows_the_steps_is_that_of_one_process() -> None:
    def cohort() -> Cohort:
        collusion = Collusion(frozenset({3}), 5)
        return {3: make_attack("sign_flip", collusion, start=1)}, collusion

    config = ProtocolConfig(peers=5, byzantine=1, run_id="radius", tau="auto")
    local, _ = compare(config, cohort, steps=4)
    assert local.peers[0].tau != 1.0


def test_broadcasts_that_do_not_fit_a_header() -> None:
    compare(ProtocolConfig(peers=4, run_id="long", directions=200), honest_cohort, steps=2)


def test_a_run_that_stops_and_goes_on_comes_to_the_same_bits() -> None:
    config = ProtocolConfig(peers=6, byzantine=2, run_id="resume 1")

    def cohort() -> Cohort:
        collusion = Collusion(frozenset({2, 5}), 6, seed=3)
        return {i: make_attack("alie", collusion, start=1) for i in (2, 5)}, collusion

    local, results = compare(config, cohort, steps=12)
    assert local.peers.keys() < set(range(6)), "choose a run in which somebody falls out"

    def first(mesh: Mesh) -> Any:
        behaviours, collusion = cohort()
        driver = CollectiveDriver(config, QuadraticTask(D), mesh, behaviours=behaviours, collusion=collusion)
        params, lines = advance(driver, torch.ones(D), 9)
        state, tensors = driver.state()
        kept = json.loads(json.dumps(state)), {name: x.clone() for name, x in tensors.items()}, params.clone(), lines
        advance(driver, params, 1)  # what is lost with the interruption
        return kept

    kept = in_ranks(first, 6)

    def second(mesh: Mesh) -> Any:
        if isinstance(kept[mesh.rank], Fallen):
            return None
        state, tensors, params, lines = kept[mesh.rank]
        behaviours, collusion = cohort()
        driver = CollectiveDriver(config, QuadraticTask(D), mesh, behaviours=behaviours, collusion=collusion)
        driver.restore(state, tensors, life=b"resumed")
        params, more = advance(driver, params, 3)
        return params, lines + more

    for before, after in zip(results, in_ranks(second, 6), strict=True):
        if not isinstance(before, Fallen):
            assert torch.equal(before[0], after[0]) and before[1] == after[1]


def test_a_training_that_has_diverged_says_so_at_every_rank() -> None:
    def work(mesh: Mesh) -> None:
        driver = CollectiveDriver(ProtocolConfig(peers=3, run_id="nan"), QuadraticTask(D), mesh)
        driver.step(torch.full((D,), float("nan")))

    assert all(isinstance(error, NoGradient) for error in in_ranks(work, 3))


def test_honest_ranks_that_disagree_are_our_bug_and_said_so() -> None:
    def work(mesh: Mesh) -> None:
        driver = CollectiveDriver(ProtocolConfig(peers=4, run_id="split", validators=0), QuadraticTask(D), mesh)
        view = driver._view
        if mesh.rank == 2:
            driver._view = lambda outcome: view(outcome)[::-1]  # type: ignore[method-assign]
        driver.step(torch.ones(D))

    for error in in_ranks(work, 4):
        assert isinstance(error, RuntimeError) and "honest ranks 0 and 2 disagree" in str(error)


def test_an_honest_rank_that_is_out_in_its_own_view_alone_is_not_lost_in_silence() -> None:
    def work(mesh: Mesh) -> None:
        driver = CollectiveDriver(ProtocolConfig(peers=4, run_id="alone", validators=0), QuadraticTask(D), mesh)
        peer = driver.peer
        if mesh.rank == 2:
            peer._finish = lambda record, already: peer.expel(record, 2, "silent")  # type: ignore[method-assign]
        driver.step(torch.ones(D))

    for error in in_ranks(work, 4):
        assert str(error) == "step 0: honest peer 2 is out in its own view (silent) alone"


def test_evidence_is_complete_although_its_writer_falls_out(tmp_path: Path) -> None:
    """Peer 0 writes until an attacker takes it along, and so does peer 1 after it."""
    config = ProtocolConfig(peers=6, byzantine=2, run_id="understudy")

    def cohort() -> Cohort:
        collusion = Collusion(frozenset({2, 5}), 6, seed=1)
        return {i: make_attack("withheld_part", collusion, start=1) for i in (2, 5)}, collusion

    def work(mesh: Mesh) -> Any:
        behaviours, collusion = cohort()
        driver = CollectiveDriver(
            config,
            QuadraticTask(D),
            mesh,
            behaviours=behaviours,
            collusion=collusion,
            recorder=None if mesh.rank in behaviours else Recorder(tmp_path, config),
        )
        params, lines = advance(driver, torch.ones(D), 5)
        driver.attest(params)
        return lines

    lines = next(lines for lines in in_ranks(work, 6) if not isinstance(lines, Fallen))
    assert [json.loads(line)["peers"] for line in lines] == [[0, 2], [1, 5]]
    ledger = Ledger()
    text = [ledger.append(Entry.from_json(line)) for line in lines]
    (tmp_path / "ledger.jsonl").write_text("".join(line + "\n" for line in text))
    assert len(audit(tmp_path).findings) == len(lines)
