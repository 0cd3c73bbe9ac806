"""One task, and an attack of one's own, in one process, in ranks and in a swarm: the same bans and bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import btard
from btard.audit import audit
from btard.audit.__main__ import main as audited
from btard.drivers.loop import Fallen
from btard.drivers.mesh import Mesh
from btard.protocol.hashing import tensor_digest
from btard.swarm.config import AttackConfig, SwarmConfig
from btard.swarm.deadlines import Deadlines
from btard.swarm.task import load_task
from btard.training.vector import flatten
from tests.albert.trainers import Trainers
from tests.drivers.test_mesh import in_ranks
from tests.training import model
from tests.training.model import EQUAL, TWO, WITH, head

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As torchrun and the swarm have: bits depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def simulated(mode: str = "per_peer", **changes: Any) -> tuple[btard.Run, str, str]:
    """The run in one process, the digest of its parameters, and the head of its ledger."""
    task = model.task()
    run = btard.simulate(task, mode=mode, **{"peers": model.PEERS, **WITH, **EQUAL, **changes})
    return run, tensor_digest(flatten(task.model), "parameters").hex(), head(run)


def recomputed(folder: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether an audit that knows nothing but the folder computes every convicted gradient again."""
    capsys.readouterr()
    assert audited([str(folder)]) == 0
    said = capsys.readouterr()
    about = [line for line in said.out.splitlines() if "wrong_gradient" in line]
    return bool(about) and all("gradient recomputed" in line for line in about) and not said.err


def test_in_one_process_all_attackers_are_banned_and_a_repetition_is_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, digest, chain = simulated(out=tmp_path / "run")
    assert recomputed(tmp_path / "run", capsys)
    assert {ban.peer for ban in run.bans} == run.attackers and not run.honest_banned
    assert run.returns, "choose a run in which the peers go back to an earlier state"
    again, *rest = simulated(mode="batched")
    assert rest == [digest, chain] and again.losses == run.losses and again.lrs == run.lrs


@pytest.mark.parametrize("wire", ["float32", "float16"])
def test_ranks_come_to_what_one_process_comes_to(wire: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, digest, chain = simulated(wire=wire)

    def work(mesh: Mesh) -> tuple[btard.Run, str]:
        task = model.task()
        found = btard.distributed(task, mesh=mesh, out=tmp_path / "run", wire=wire, **WITH, **EQUAL)
        return found, tensor_digest(flatten(task.model), "parameters").hex()

    for rank, result in enumerate(in_ranks(work, model.PEERS, timeout=60)):
        assert not isinstance(result, Exception), result
        found, params = result
        if rank in run.active:
            assert (params, head(found)) == (digest, chain), rank
            assert found.bans == run.bans and found.returns == run.returns
            assert (found.losses, found.lrs, found.radii) == (run.losses, run.lrs, run.radii)
            assert found.fallen is None and found.leads == (rank == 0)
        else:
            assert rank in run.attackers and "out of the run" in str(found.fallen) and not found.leads
    assert recomputed(tmp_path / "run", capsys)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("wire", ["float32", "float16"])
def test_a_swarm_comes_to_what_one_process_comes_to(
    wire: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its trainers are threads of this process, their keys follow from `run_id`."""
    run, digest, chain = simulated(wire=wire)
    config = SwarmConfig(
        run_id=model.RUN_ID,
        peers=model.PEERS,
        byzantine=model.BYZANTINE,
        steps=model.STEPS,
        seed=model.SEED,
        threads=1,
        checkpoint_every=5,
        protocol=replace(SwarmConfig().protocol, tau=model.TAU, heal="auto", wire=wire),
        attack=AttackConfig(name=model.OWN, start=3, options={"scale": 100.0}),
        deadlines=Deadlines(compute=20, phase=4, message=0.2, uplink=1, give_up=0.5, gather=60),
    )
    assert config.attackers() == run.attackers
    trainers = Trainers(config, tmp_path, source=load_task("tests.training.model:make"))
    try:
        ends = trainers.run()
    finally:
        trainers.close()
    for number, end in ends.items():
        if number in run.active:
            assert (end["digest"], end["ledger"]) == (digest, chain), number
            assert [(ban["step"], ban["peer"], ban["kind"]) for ban in end["bans"]] == [ban[:3] for ban in run.bans]
        else:
            assert isinstance(end, Fallen)
    assert recomputed(tmp_path / f"peer-{min(run.active)}", capsys)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_torchrun_comes_to_what_one_process_comes_to(tmp_path: Path) -> None:
    """With two processes, which take their time to start, and make the run twice; what is in one is tested above."""
    run, digest, chain = simulated(**TWO, peers=2)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tests.training.worker"]
    ended = subprocess.run(
        [*words, str(tmp_path / "run")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    said = [json.loads(line) for line in ended.stdout.splitlines()]
    assert said == 2 * [{"rank": 0, "digest": digest, "ledger": chain, "losses": run.losses}]
    assert audit(tmp_path / "run").findings == ()
