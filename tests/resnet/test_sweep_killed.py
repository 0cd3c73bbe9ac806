"""A sweep in processes of its own: killing it, its workers or one share of it changes nothing."""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from btard.harness.run_folder import read_summary
from resnet.experiments import workers
from resnet.experiments.grid import read_grid
from resnet.experiments.plan import Task
from resnet.sweep import main
from tests import warm
from tests.resnet.small_grid import SETTINGS, files, write_grid

ROOT = Path(__file__).parents[2]
PATIENCE = 250.0
"""Seconds after which a program hangs: importing torch alone takes a quarter of a minute on a machine that is busy."""


def start_sweep(grid: Path, out: Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "resnet.sweep", str(grid), "--out", str(out), "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return warm.started(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe)


def forked_sweep(words: list[str], hold: float) -> int:
    """The same in a warm process, whose workers are forked from itself: it has neither threads nor CUDA.

    A worker stops where the sweep has done `hold` steps: the whole sweep is done in a second, and whoever is to meet it
    while it trains may be late by more than that.
    """
    fork = multiprocessing.get_context("fork")
    train, out = workers._train, Path(words[words.index("--out") + 1])

    def holding(task: Task, on_step: Callable[[int], None], keep_checkpoints: bool) -> None:
        def step(done: int) -> None:
            on_step(done)
            while steps_done(out) >= hold:
                signal.pause()

        train(task, step, keep_checkpoints)

    workers._train = holding
    workers._start_server = lambda: None  # forked workers have none
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment]
    return main(words)


def fork_sweep(grid: Path, out: Path, hold: float = math.inf) -> warm.Program:
    name = f"sweep {time.monotonic_ns()}"
    main = functools.partial(forked_sweep, hold=hold)
    return warm.Program(main, [str(grid), "--out", str(out), "--jobs", "2"], grid.parent, name)


def steps_done(out: Path) -> int:
    """Lines in all metrics of the sweep so far, those of warm-ups included."""
    with contextlib.suppress(FileNotFoundError):  # a folder of a run is replaced while it is looked through
        return sum(file.read_bytes().count(b"\n") for file in out.rglob("metrics.jsonl"))
    return 0


def started_by(pid: int) -> list[psutil.Process]:
    """Its workers, and the process that forks them."""
    return psutil.Process(pid).children(recursive=True)


def servers(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [found for found in started_by(pid) if "forkserver" in " ".join(found.cmdline())]
    return []


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(holds, what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)


def kill_after(steps: int, sweeping: warm.Program, out: Path) -> None:
    """Kill the sweep's parent alone: whoever trains has to end with it, and leave the folders to the next."""
    wait_until(lambda: steps_done(out) >= steps or sweeping.code(0) is not None, f"{steps} steps")
    assert sweeping.code(0) is None, sweeping.errors
    forked = started_by(sweeping.pid)
    assert len(forked) == 2
    os.kill(sweeping.pid, signal.SIGKILL)
    assert sweeping.code() == -signal.SIGKILL
    wait_until(lambda: not any(map(alive, forked)), "the workers' end")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_sweep_that_was_killed_three_times_leaves_the_files_of_an_undisturbed_one(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid.yaml")
    whole = fork_sweep(grid, tmp_path / "whole")
    assert whole.code(PATIENCE) == 0, whole.errors
    total = steps_done(tmp_path / "whole")
    broken, chance = tmp_path / "broken", random.Random(0)
    reached = 0
    for _ in range(3):
        reached = chance.randint(reached + 1, max(reached + 1, (reached + total) // 2))
        kill_after(reached, fork_sweep(grid, broken, hold=reached), broken)
        reached = steps_done(broken)
    last = fork_sweep(grid, broken)
    assert last.code(PATIENCE) == 0, last.errors
    assert files(broken) == files(tmp_path / "whole")
    runs = [path for path in files(broken) if path.endswith("summary.json")]
    assert len(runs) == 2 * 3
    assert not list((broken / "runs").rglob("*.safetensors.tmp"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_that_dies_costs_its_run_and_no_other(tmp_path: Path) -> None:
    longer = {**SETTINGS, "steps": 60}  # so that there is a worker left to kill, however late this comes
    grid = write_grid(tmp_path / "grid.yaml", settings=longer, defences={"BTARD": {}})
    with start_sweep(grid, tmp_path / "out") as process:
        wait_until(lambda: servers(process.pid) or process.poll() is not None, "the process that forks workers")
        for server in servers(process.pid):
            server.send_signal(signal.SIGINT)  # as a terminal sends it to all: it is for the parent alone
        wait_until(lambda: steps_done(tmp_path / "out") > 12 or process.poll() is not None, "a run to begin")
        victim = next(found for found in started_by(process.pid) if found.ppid() != process.pid)  # a child of a child
        victim.kill()
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "its process died (SIGKILL" in errors, errors
    again = fork_sweep(grid, tmp_path / "out")
    assert again.code(PATIENCE) == 0, again.errors
    assert len(list((tmp_path / "out/runs").rglob("summary.json"))) == 3


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_ends_the_workers_and_says_how_to_go_on(tmp_path: Path) -> None:
    sweeping = fork_sweep(write_grid(tmp_path / "grid.yaml"), tmp_path / "out", hold=1)
    wait_until(lambda: steps_done(tmp_path / "out") > 0 or sweeping.code(0) is not None, "a first step")
    forked = started_by(sweeping.pid)
    os.kill(sweeping.pid, signal.SIGINT)
    assert sweeping.code(PATIENCE) == 130 and "goes on from the last checkpoints" in sweeping.errors
    assert len(forked) == 2
    wait_until(lambda: not any(map(alive, forked)), "the workers' end")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_jobs_of_a_cluster_do_their_shares_in_one_folder(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid.yaml", seeds=[0, 1], attacks={"sign flip": {"attack.name": "sign_flip"}})
    command = ["bash", str(ROOT / "scripts/sweep_slurm.sh"), str(grid), str(tmp_path / "out"), "--steps", "8"]
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "SLURM_ARRAY_TASK_COUNT": "2"}
    with contextlib.ExitStack() as stack:
        shares = [{**environment, "SLURM_ARRAY_TASK_ID": str(i)} for i in (1, 2)]
        jobs = [stack.enter_context(warm.started(command, env=env, stdout=subprocess.DEVNULL)) for env in shares]
        assert [job.wait(timeout=PATIENCE) for job in jobs] == [0, 0]
    cells = read_grid(tmp_path / "out/sweep.yaml").cells
    assert len(cells) == 4
    for cell in cells:
        summary = read_summary(tmp_path / "out/runs" / cell.name)
        assert summary is not None and summary["steps"] == 8
    alone = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert alone.returncode and "run it by sbatch" in alone.stderr
