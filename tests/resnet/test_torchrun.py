"""A process for each peer under torchrun: the local run's bits, also after a rank was killed, and clear mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from btard.export.__main__ import main as export
from btard.harness.run_folder import RunFolder, RunFolderError
from resnet.processes import main
from resnet.training import train
from tests import warm
from tests.resnet import torchrun_worker
from tests.resnet.trained import DIGITS, ROOT, config_of

SETTINGS = ["--peers=4", "--steps=9", "--eval_every=4", "--checkpoint_every=3", "--test_samples=50", "--threads=1"]
SETTINGS += ["--model.width=2", "--batch_size=4", "--timeout=20"]
SETTINGS += ["--byzantine=1", "--attack.name=sign_flip", "--attack.start=2"]


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False)


def files_of(out: Path) -> dict[str, Any]:
    """What equal runs have in common."""
    return {
        "metrics": (out / "metrics.jsonl").read_text(),
        "ledger": (out / "ledger.jsonl").read_text(),
    }


def final_params(out: Path) -> dict[str, bytes]:
    files = (out / "checkpoints").glob("**/step-00000009.safetensors")
    return {file.parent.name: load_file(file)["parameters"].numpy().tobytes() for file in files}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_with_a_process_per_peer_is_the_local_run_even_after_kill_9(tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    train(config_of(*SETTINGS, "--mode=per_peer"), one, progress=False)
    killed = warm.ranks(torchrun_worker.main, ["1", "5", DIGITS, "--out", str(many), *SETTINGS], 4, tmp_path, 110)
    assert killed[1].code() == -signal.SIGKILL
    said = "".join(rank.errors for rank in killed)
    lines = [line for line in said.splitlines() if "error: step" in line]
    assert len(lines) == 1, said
    assert "rank 1 ended; restart with the same command to go on from step 3" in lines[0]
    done = torchrun("-m", "resnet.train", DIGITS, "--out", str(many), *SETTINGS)
    assert done.returncode == 0, done.stderr
    assert files_of(many) == files_of(one)
    bits = final_params(one)["checkpoints"]
    bans = json.loads((many / "summary.json").read_text())["bans"]
    left = {f"rank-{rank:03d}" for rank in range(4)} - {f"rank-{ban['peer']:03d}" for ban in bans}
    assert final_params(many) == dict.fromkeys(left, bits)
    assert "test accuracy" in done.stdout and done.stdout.count("test accuracy") == 1
    for out in (one, many):
        assert export([str(out), "--out", str(tmp_path / f"{out.name}-model")]) == 0
    named = [load_file(tmp_path / f"{out.name}-model/model.safetensors") for out in (one, many)]
    assert named[0].keys() == named[1].keys() and all(torch.equal(x, named[1][name]) for name, x in named[0].items())
    assert export(["--check", str(tmp_path / "many-model")]) == 0
    with pytest.raises(RunFolderError, match="use torchrun"):
        RunFolder(many, config_of(*SETTINGS, "--mode=per_peer"))
    with pytest.raises(RunFolderError, match="not under torchrun"):
        RunFolder(one, config_of(*SETTINGS, "--mode=per_peer"), processes=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "peers = 6, but torchrun started 3 processes"),
        (["--aggregator.name=mean"], "aggregator.name mean: torchrun is for btard"),
        (["--commitments=ideal"], "processes have no memory in common, use hashed"),
        (["--modle.width=3"], "modle.width"),
    ],
)
@pytest.mark.parametrize("rank", [0, 2])
def test_a_mistake_is_one_line_from_one_rank(
    words: list[str],
    message: str,
    rank: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "3")
    try:
        code: Any = main([DIGITS, "--out", str(tmp_path / "run"), "--peers=6", *words])
    except SystemExit as stopped:
        code = stopped.code
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert (len(lines) == 1 and message in lines[0]) if rank == 0 else not lines
