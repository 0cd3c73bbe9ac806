"""A sweep: its runs are those that `resnet.train` makes one by one, and killing it changes nothing."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from btard.attacks.registry import ATTACKS
from btard.harness.run_folder import RunFolderError, read_summary
from btard.harness.settings import config_text
from resnet.data import load_dataset
from resnet.experiments.grid import Grid, parse_grid, read_grid
from resnet.experiments.outcomes import noted_digest, read_results
from resnet.experiments.plan import Branch, Segment, make_plan, shard
from resnet.experiments.sweep import sweep
from resnet.experiments.warmup import branch, extend, fork_step, warm_up_name, warm_up_of
from resnet.sweep import main
from resnet.training import knowing, train
from tests import warm

ROOT = Path(__file__).parents[2]
PATIENCE = 250.0
"""Seconds after which a program hangs: importing torch alone takes a quarter of a minute on a machine that is busy."""

SETTINGS = {
    "peers": 7,
    "byzantine": 2,
    "steps": 12,
    "eval_every": 4,
    "test_samples": 40,
    "batch_size": 4,
    "threads": 1,
    "checkpoint_every": 3,
    "model.width": 1,
    "data.name": "digits",
    "attack.start": 5,
}
DEFENCES = {"BTARD": {"aggregator.name": "btard"}, "Krum": {"aggregator.name": "krum"}}


def grid_of(attacks: dict, defences: dict | None = None, **entries) -> Grid:
    experiments = entries.pop("experiments", {"all": {}})
    content = {"settings": SETTINGS, "attacks": attacks, "defences": defences or DEFENCES, **entries}
    return parse_grid({**content, "experiments": experiments}, "a test")


def files(folder: Path) -> dict[str, bytes]:
    """Everything that a clock has no part in."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("timings.jsonl", ".lock")
    }


@pytest.fixture(scope="module")
def warm_ups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the attacks of the next test find the warm-ups that they share, as those of a sweep do."""
    return tmp_path_factory.mktemp("warm-ups")


@pytest.mark.parametrize("name", ATTACKS)
def test_a_run_that_leaves_a_warm_up_is_the_run_that_was_trained_alone(
    name: str, tmp_path: Path, warm_ups: Path
) -> None:
    attack = {"attack.name": name} | ({"attack.delay": 3} if name == "delayed_gradient" else {})
    defences = DEFENCES if ATTACKS[name].level == "gradient" else {"BTARD": DEFENCES["BTARD"]}
    for cell in grid_of({name: attack}, defences).cells:
        step = fork_step(cell.config)
        assert step == (2 if name == "delayed_gradient" else 5 - (ATTACKS[name].level == "protocol"))
        warm_up = warm_ups / warm_up_name(warm_up_of(cell.config))
        for left in (2, 4, 5, 9):  # it has gone on before it is left
            extend(warm_up_of(cell.config), warm_up, left)
        branch(cell.config, tmp_path / cell.defence / "branch", warm_up, step)
        train(cell.config, tmp_path / cell.defence / "branch", progress=False, events=False)
        train(cell.config, tmp_path / cell.defence / "alone", progress=False, events=False)
        one, other = (files(tmp_path / cell.defence / which) for which in ("branch", "alone"))
        # The checkpoint at the fork is an extra of the branch.
        common = one.keys() & other.keys()
        assert all(path.startswith("checkpoints/") for path in one.keys() ^ other.keys())
        assert "checkpoints/step-00000012.safetensors" in common
        assert {path: one[path] for path in common} == {path: other[path] for path in common}


ATTACKS_OF_TWO = {"no attack": {}, "sign flip": {"attack.name": "sign_flip"}, "ALIE": {"attack.name": "alie"}}


def write_grid(file: Path, **entries) -> Path:
    content = {"settings": SETTINGS, "attacks": ATTACKS_OF_TWO, "defences": DEFENCES, "experiments": {"all": {}}}
    file.write_text(yaml.safe_dump({**content, **entries}))
    return file


def start_sweep(grid: Path, out: Path) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "resnet.sweep", str(grid), "--out", str(out), "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return warm.started(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe)


def forked_sweep(words: list[str]) -> int:
    """The same in a warm process, whose workers are forked from itself: it has neither threads nor CUDA."""
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: fork  # type: ignore[assignment]
    return main(words)


def fork_sweep(grid: Path, out: Path) -> warm.Program:
    name = f"sweep {time.monotonic_ns()}"
    return warm.Program(forked_sweep, [str(grid), "--out", str(out), "--jobs", "2"], grid.parent, name)


def steps_done(out: Path) -> int:
    """Lines in all metrics of the sweep so far, those of warm-ups included."""
    with contextlib.suppress(FileNotFoundError):  # a folder of a run is replaced while it is looked through
        return sum(file.read_bytes().count(b"\n") for file in out.rglob("metrics.jsonl"))
    return 0


def started_by(pid: int) -> list[psutil.Process]:
    """Its workers, and the process that forks them."""
    return psutil.Process(pid).children(recursive=True)


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
    workers = started_by(sweeping.pid)
    assert len(workers) == 2
    os.kill(sweeping.pid, signal.SIGKILL)
    assert sweeping.code() == -signal.SIGKILL
    wait_until(lambda: not any(map(alive, workers)), "the workers' end")


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
        kill_after(reached, fork_sweep(grid, broken), broken)
        reached = steps_done(broken)
    last = fork_sweep(grid, broken)
    assert last.code(PATIENCE) == 0, last.errors
    assert files(broken) == files(tmp_path / "whole")
    runs = [path for path in files(broken) if path.endswith("summary.json")]
    assert len(runs) == 2 * 3
    assert not list((broken / "runs").rglob("*.safetensors.tmp"))


def test_a_sweep_leaves_alone_what_is_finished_and_trains_what_is_new(tmp_path: Path) -> None:
    small = grid_of({"sign flip": {"attack.name": "sign_flip"}}, {"BTARD": {}})
    assert not sweep(small, tmp_path, show=False).failed
    before = files(tmp_path / "runs")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    # A grid that has grown, also by a setting that no run had differed in.
    wider = grid_of(
        {"sign flip": {"attack.name": "sign_flip"}},
        {"BTARD": {}},
        experiments={"all": {}, "two": {"vary": {"protocol.validators": [1, 2]}}},
    )
    assert not sweep(wider, tmp_path, show=False).failed
    after = files(tmp_path / "runs")
    assert before.items() < after.items()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert sum(path.endswith("summary.json") for path in after) == 2
    assert read_grid(tmp_path / "sweep.yaml").text == wider.text


def test_one_run_that_fails_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path / "grid.yaml", defences={"BTARD": {}})
    stranger = tmp_path / "out/runs/btard/sign-flip/seed-0/notes.txt"
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sweep.yaml").write_text("")
    stranger.parent.mkdir(parents=True)
    stranger.write_text("mine")
    assert main([str(grid), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "btard/sign-flip/seed-0: RunFolderError" in said.err and "notes.txt" in said.err
    assert stranger.read_text() == "mine"
    finished = {path.parent.parent.name for path in (tmp_path / "out/runs").rglob("summary.json")}
    assert finished == {"no-attack", "alie"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_that_dies_costs_its_run_and_no_other(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid.yaml", defences={"BTARD": {}})
    with start_sweep(grid, tmp_path / "out") as process:
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
    sweeping = fork_sweep(write_grid(tmp_path / "grid.yaml"), tmp_path / "out")
    wait_until(lambda: steps_done(tmp_path / "out") > 0 or sweeping.code(0) is not None, "a first step")
    workers = started_by(sweeping.pid)
    os.kill(sweeping.pid, signal.SIGINT)
    assert sweeping.code(PATIENCE) == 130 and "goes on from the last checkpoints" in sweeping.errors
    assert len(workers) == 2
    wait_until(lambda: not any(map(alive, workers)), "the workers' end")


def test_warm_ups_are_shared_and_come_before_what_needs_them(tmp_path: Path) -> None:
    late = {"all": {}, "late": {"settings": {"attack.start": 8}}}
    plan = make_plan(grid_of(ATTACKS_OF_TWO, experiments=late, seeds=[0, 1]).cells, tmp_path)
    segments = [task for task in plan.tasks if isinstance(task, Segment)]
    # Two defences and two seeds; a start at 5, one at 8, and the last step of the run without attack.
    assert sorted((segment.first, segment.last) for segment in segments) == sorted([(0, 5), (5, 8), (8, 11)] * 4)
    assert len({segment.folder for segment in segments}) == 4
    order = {task: place for place, task in enumerate(plan.tasks)}
    assert all(order[needed] < order[task] for task, needed in plan.needs.items())
    for task in plan.tasks:
        if isinstance(task, Branch):
            needed = plan.needs[task]
            assert isinstance(needed, Segment) and (needed.folder, needed.last) == (task.warm_up, task.fork)
    # Of each experiment, the first seed's picture is whole before the second one's begins.
    places = [(task.cell.config.attack.start == 8, task.cell.seed) for task in plan.tasks if isinstance(task, Branch)]
    assert [place for place in places if place[0]] == sorted(place for place in places if place[0])
    assert [place for place in places if not place[0]] == sorted(place for place in places if not place[0])


def test_a_warm_up_whose_runs_are_finished_is_not_trained_again(tmp_path: Path) -> None:
    grid = grid_of(ATTACKS_OF_TWO, {"BTARD": {}})
    plan = make_plan(grid.cells, tmp_path)
    for cell in grid.cells[1:]:
        folder = tmp_path / "runs" / cell.name
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text("{}")
    # The run without attack is left, and goes on from what the others left: the whole chain of its warm-up is needed.
    assert [str(task) for task in plan.todo()] == [
        "warm-up btard-1.0 seed-0 to step 5",
        "warm-up btard-1.0 seed-0 to step 11",
        "btard/no-attack/seed-0",
    ]
    (tmp_path / "runs/btard/no-attack/seed-0").mkdir(parents=True)
    (tmp_path / "runs/btard/no-attack/seed-0/summary.json").write_text("{}")
    assert plan.todo() == []


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_a_division_and_keep_what_is_common_together(count: int) -> None:
    cells = grid_of(ATTACKS_OF_TWO, seeds=[0, 1, 2]).cells
    shares = [shard(cells, index, count) for index in range(1, count + 1)]
    names = [cell.name for share in shares for cell in share]
    assert sorted(names) == sorted(cell.name for cell in cells) and len(set(names)) == len(names)
    owners = [{(cell.defence, cell.seed) for cell in share} for share in shares]
    assert sum(len(owned) for owned in owners) == len(set.union(*owners)) == 6
    assert max(map(len, shares)) - min(map(len, shares)) <= 3  # no share differs by more than one warm-up's runs


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


def test_cells_are_named_by_what_differs_from_the_grids_settings() -> None:
    grid = grid_of(
        {"no attack": {}, "ALIE": {"attack.name": "alie"}},
        experiments={
            "a": {},
            "b": {"settings": {"byzantine": 1, "attack.start": 7}, "vary": {"protocol.validators": [1, 2]}},
        },
    )
    assert [cell.name for cell in grid.cells] == [
        "btard/no-attack/seed-0",
        "krum/no-attack/seed-0",
        "btard/alie/seed-0",
        "krum/alie/seed-0",
        "krum/no-attack/byzantine-1/seed-0",
        "btard/alie/start-7_byzantine-1/seed-0",
        "krum/alie/start-7_byzantine-1/seed-0",
        "btard/no-attack/validators-2/seed-0",
        "krum/no-attack/byzantine-1_validators-2/seed-0",
        "btard/alie/start-7_byzantine-1_validators-2/seed-0",
        "krum/alie/start-7_byzantine-1_validators-2/seed-0",
    ]
    quiet = grid.cells[4].config
    assert quiet.byzantine == 0 and quiet.tolerated == 1 and quiet.attack.name is None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"experiments": {}}, "experiments: expected at least one"),
        ({"attacks": {}}, "attacks: expected at least one"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"experiments": {"e": {"atacks": []}}}, "did you mean attacks?"),
        ({"experiments": {"e": {"attacks": ["ALEI"]}}}, "'ALEI' is not among the file's attacks; did you mean ALIE?"),
        (
            {"experiments": {"e": {"vary": {"protocol.validators": 2}}}},
            "vary.protocol.validators: expected a list of values, got 2",
        ),
        (
            {"experiments": {"e": {"vary": {"protocol.validator": [2]}}}},
            "key protocol.validator; did you mean protocol.validators?",
        ),
        ({"experiments": {"e": {"seeds": ["a"]}}}, "seeds: expected a list of whole numbers"),
        ({"experiments": {"e": {"settings": {"byzantine": 4}}}}, "byzantine must be >= 0 and < peers / 2 = 3.5, got 4"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        ({"base": 3}, "base must be the name of a file"),
        (
            {"defences": {"Krum": {"aggregator.name": "krum"}}, "settings": {**SETTINGS, "peers": 6}},
            "aggregator.name krum",
        ),
        (
            {"attacks": {"A": {"attack.name": "alie"}, "a": {"attack.name": "zero"}}},
            "two different runs would be btard/a/",
        ),
    ],
)
def test_a_mistake_in_a_grid_is_one_line_before_anything_is_trained(
    entries: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path / "grid.yaml", **entries)
    with pytest.raises(SystemExit) as ended:
        main([str(grid), "--out", str(tmp_path / "out")])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.count("\n") == 1 and message in errors
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--out DIR is missing"),
        (["--out", "{out}", "--only", "later"], "no experiment 'later', there are all"),
        (["--out", "{out}", "--peer", "8"], "unknown key --peer"),
        (["--out", "{strange}"], "holds other files (a file) and no sweep"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/a file").touch()
    places = {"out": tmp_path / "out", "strange": tmp_path / "strange"}
    with pytest.raises(SystemExit) as ended:
        main([str(write_grid(tmp_path / "grid.yaml")), *(word.format(**places) for word in words)])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and errors.count("\n") == 1 and message in errors


def test_the_plan_says_what_there_is_to_do_and_trains_nothing(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path / "grid.yaml")
    assert main([str(grid), "--out", str(tmp_path / "out"), "--plan", "--seed", "3", "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert "6 different runs, 6 to train, 4 parts of warm-ups" in " ".join(said.split())
    assert not (tmp_path / "out").exists()


def test_the_command_line_changes_every_run_and_the_folder_alone_goes_on(tmp_path: Path) -> None:
    grid = write_grid(tmp_path / "grid.yaml", defences={"BTARD": {}}, experiments={"e": {"attacks": ["sign flip"]}})
    out = tmp_path / "out"
    assert main([str(grid), "--out", str(out), "--steps", "9", "--data.label", "8 x 8"]) == 0
    summary = read_summary(out / "runs/btard/sign-flip/seed-0")
    assert summary is not None and summary["steps"] == 9 and summary["data"] == "8 x 8"
    assert main([str(out)]) == 0  # nothing is left to do, and the folder knows its grid


@pytest.mark.parametrize("file", ["small.yaml", "paper.yaml", "tiny.yaml"])
def test_grids_that_come_with_the_repository_can_be_read(file: str) -> None:
    grid = read_grid(ROOT / "configs/resnet" / file)
    again = parse_grid(yaml.safe_load(grid.text), "again")
    assert again.text == grid.text
    assert [cell.config for cell in again.cells] == [cell.config for cell in grid.cells]


def test_runs_on_other_data_than_the_rest_are_noticed(tmp_path: Path) -> None:
    grid = grid_of({"no attack": {}, "sign flip": {"attack.name": "sign_flip"}}, {"BTARD": DEFENCES["BTARD"]})
    (tmp_path / "sweep.yaml").write_text(grid.text)
    one, other = (tmp_path / "runs" / cell.name for cell in grid.cells)
    train(grid.cells[0].config, one, progress=False, events=False)
    now = noted_digest(one)
    assert now == load_dataset("digits").digest
    settings = (one / "config.yaml").read_text()
    (one / "config.yaml").write_text(settings.replace(now, "f" * 64))
    with pytest.raises(RunFolderError, match=f"was trained on other data .data.digest f*. than there are now .{now}"):
        sweep(grid, tmp_path, show=False)
    shutil.copytree(one, other)
    text = config_text(knowing(grid.cells[1].config, load_dataset("digits")))
    (other / "config.yaml").write_text(text)
    with pytest.raises(RunFolderError, match="was trained on other data than"):
        read_results(tmp_path, grid)
