"""One process per peer: every attack of the registry as in one process, to the bit; and ranks that are lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from btard.attacks import ATTACKS
from btard.drivers.local import LocalDriver
from btard.protocol.ledger import Entry
from btard.task import QuadraticTask
from tests import warm
from tests.drivers import collective_worker
from tests.drivers.collective_worker import HEALED, LOST_AMONG, MEMBERS, PEERS, RUNS, D, advanced, setting, steps_of

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(240)  # starting processes takes long on a busy machine


def torchrun(*words: str, processes: int, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """`torchrun` on this machine; it ends its workers itself, whatever happens to them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All attacks of the registry, one after the other, in the same processes."""
    folder = tmp_path_factory.mktemp("registry")
    done = warm.ranks(collective_worker.main, ["registry", str(folder)], PEERS, folder, 200)
    assert [rank.code() for rank in done] == [0] * PEERS, "\n".join(rank.errors for rank in done)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("attack", RUNS)
def test_every_attack_comes_to_what_it_comes_to_in_one_process(
    attack: str, results: Path, one_thread: None, tmp_path: Path
) -> None:
    config, collusion, behaviours = setting(attack)
    local = LocalDriver(config, QuadraticTask(D), behaviours=behaviours, collusion=collusion, mode="per_peer")
    params, lines, sent = torch.ones(D), [], []
    for _ in range(steps_of(attack)):
        result = local.step(params)
        lines += [entry.to_json() for entry in result.removed]
        sent.append(result.sent)
        params = advanced(params, result)
    for rank in range(PEERS):
        report = json.loads((results / f"{attack}.{rank}.json").read_text())
        if rank not in local.peers:
            assert not report["ranks"] and f"peer {rank} is out of the run" in report["ledger"][0]
            continue
        assert report["ledger"] == lines
        assert report["ranks"] == sorted(local.peers) and report["active"] == list(result.active)
        assert report["sent"] == [step[rank] for step in sent]
        assert torch.equal(load_file(results / f"{attack}.{rank}.safetensors")["params"], params)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_attacks_of_this_file_do_something(results: Path) -> None:
    ledgers = {attack: json.loads((results / f"{attack}.0.json").read_text())["ledger"] for attack in ATTACKS}
    assert sum(bool(lines) for lines in ledgers.values()) >= len(ATTACKS) / 2


def test_the_peers_of_this_file_go_back(results: Path) -> None:
    ledger = [Entry.from_json(line) for line in json.loads((results / f"{HEALED}.0.json").read_text())["ledger"]]
    assert any(entry.about_step < entry.step for entry in ledger if entry.kind == "heal")
    left = [json.loads(file.read_text())["ranks"] for file in results.glob("*.json")]
    assert {len(ranks) for ranks in left} >= {0, PEERS - len(MEMBERS), PEERS}


@pytest.mark.parametrize("mode", ["exit", "hang"])
def test_a_lost_rank_ends_the_run_and_is_named(mode: str, tmp_path: Path) -> None:
    if mode == "exit":
        done = torchrun("tests/drivers/collective_worker.py", mode, str(tmp_path), processes=LOST_AMONG)
        assert done.returncode != 0
    else:
        ranks = warm.ranks(collective_worker.main, [mode, str(tmp_path)], LOST_AMONG, tmp_path, 200)
        codes = [rank.code() for rank in ranks]
        assert codes[2] == -signal.SIGALRM and set(codes[:2] + codes[3:]) == {1}
    survivors = [rank for rank in range(LOST_AMONG) if rank != 2]
    said = {(tmp_path / f"{mode}.{rank}").read_text() for rank in survivors}
    how = "ended" if mode == "exit" else "did not answer within 4 s"
    assert said == {f"step 1, phase report: rank 2 {how}"}
