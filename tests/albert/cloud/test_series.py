"""A series of swarms on AWS: each is launched, waited for, fetched and removed; no machine computes anything here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from albert.cloud.errors import CloudError
from albert.cloud.run import Charter, Run, now
from albert.cloud.swarm_settings import swarm_settings
from albert.cloud.user_data import START, user_data
from albert.config import Config
from albert.experiments import aws
from albert.experiments.__main__ import main
from albert.experiments.aws import AwsSwarms
from albert.experiments.grid import BASELINE, Cell, Grid, read_grid
from albert.experiments.results import read_swarms
from albert.experiments.series import run_series
from btard.harness.settings import differing_keys, load_config
from btard.harness.typed_yaml import ConfigError
from btard.swarm.local import COORDINATOR
from tests.albert.cloud.conftest import Cloud
from tests.albert.cloud.folders import checkpoint
from tests.albert.experiments.conftest import GRID, write_swarm
from tests.notebooks import notebooks
from tests.notebooks.notebooks import ROOT

CONFIGS = ROOT / "configs/albert"


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    """A baseline, and one attack against BTARD and the mean."""
    (tmp_path / "base.yaml").write_text("{run_id: small, peers: 5, byzantine: 2, steps: 9, data: {path: nowhere}}\n")
    text = GRID.format(baseline="BTARD", starts=[20], seeds=[0]).replace("  IPM:", "  #")
    (tmp_path / "grid.yaml").write_text(text)
    return read_grid(tmp_path / "grid.yaml")


def finish(cloud: Cloud, cell: Cell, run_id: str, folder: Path) -> None:
    """Put what the coordinator of a finished swarm leaves into the bucket."""
    write_swarm(cell, folder)
    place = folder / cell.name / COORDINATOR
    for file in sorted(place.rglob("*")):
        if file.is_file():
            saved = file.suffix == ".safetensors"
            body = checkpoint(int(file.stem.removeprefix("step-"))) if saved else file.read_bytes()
            key = f"btard/{run_id}/{file.relative_to(place)}"
            cloud.client("s3").put_object(Bucket="results", Key=key, Body=body)


class Machines:
    """What the machines would do: during a wait the coordinator writes its folder into the bucket."""

    def __init__(self, cloud: Cloud, grid: Grid, place: AwsSwarms, folder: Path) -> None:
        self.cloud, self.grid, self.place, self.folder = cloud, grid, place, folder
        self.waited: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.wait = aws.wait
        self.instead: Callable[[], bool] | None = None
        """Happens at the next wait instead."""

    def __call__(self, run: Run, out: object, listen: Callable[[int], None]) -> bool:
        cell = next(cell for cell in self.grid.cells if self.place.run_id(cell) == run.config.run_id)
        self.waited.append(cell.name)
        groups = self.cloud.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
        sizes = {g["AutoScalingGroupName"].rpartition("-")[2]: g["DesiredCapacity"] for g in groups}
        self.sizes.append((sizes["honest"], sizes.get("byzantine", 0)))
        if self.instead is not None:
            instead, self.instead = self.instead, None
            return instead()
        finish(self.cloud, cell, run.config.run_id, self.folder)
        return self.wait(run, out, listen)  # type: ignore[arg-type]


@pytest.fixture
def place(cloud: Cloud) -> AwsSwarms:
    swarms = AwsSwarms.of_file(cloud.file)
    swarms.account = cloud.account
    return swarms


@pytest.fixture
def machines(cloud: Cloud, grid: Grid, place: AwsSwarms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    found = Machines(cloud, grid, place, tmp_path / "machines")
    monkeypatch.setattr(aws, "wait", found)
    return found


def left(place: AwsSwarms, grid: Grid) -> list[object]:
    from albert.cloud.stop import leftovers

    return [item for cell in grid.cells for item in leftovers(place.run_of(cell, Path("settings"), None))]


def test_a_series_runs_one_swarm_after_another_and_leaves_nothing(
    cloud: Cloud, grid: Grid, place: AwsSwarms, machines: Machines, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run_series(grid, out, place) == {}
    names = [cell.name for cell in grid.cells]
    assert machines.waited == names
    assert machines.sizes == [(5, 0), (3, 2), (3, 2)]  # nobody attacks the baseline
    swarms = read_swarms(out)
    assert {swarm.name for swarm in swarms} == set(names)
    assert not list(out.rglob("*.safetensors"))  # they stay in the bucket
    assert left(place, grid) == []
    before = len(cloud.endpoint.changes())
    assert run_series(grid, out, place) == {}
    assert len(cloud.endpoint.changes()) == before


def test_the_machines_get_the_swarms_settings_and_the_checkpoint(
    cloud: Cloud, grid: Grid, place: AwsSwarms, machines: Machines, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    attack = next(cell for cell in grid.attacks if cell.defence == "mean")
    with pytest.raises(
        CloudError, match="checkpoints: expected one of step 15 or before, found none; run the baseline"
    ):
        place.train(attack, out, lambda step: None)
    assert grid.baseline is not None
    assert place.train(grid.baseline, out, lambda step: None) is None
    address = place._checkpoint(attack)
    assert address == f"s3://results/btard/{place.run_id(grid.baseline)}/checkpoints/step-00000010.safetensors"
    run = place.run_of(attack, out, address)
    assert run.config.swarm.start_from == address
    file = tmp_path / "swarm.yaml"
    file.write_text(swarm_settings(run.config))
    words = [word for key, value in aws_options(run, "byzantine") for word in (f"--{key}", value)]
    config, _ = load_config(Config, [str(file), "--out", "run", *words], "program", "about")
    changed = {key for key, _, _ in differing_keys(config, attack.config)}
    assert changed == {"run_id", "start_from", "threads", "protocol.probation", "attack.join"}
    assert (config.attack.join, config.start_from, config.run_id) == (True, START, place.run_id(attack))
    assert place.run_of(grid.baseline, out, None).config.trainers.byzantine == 0


def aws_options(run: Run, role: str) -> list[tuple[str, str]]:
    from albert.cloud.user_data import _word, options

    return [(key, _word(value)) for key, value in options(run, role).items()]  # type: ignore[arg-type]


def test_an_interruption_leaves_the_swarm_alone_and_the_next_call_goes_on_with_it(
    cloud: Cloud, grid: Grid, place: AwsSwarms, machines: Machines, tmp_path: Path
) -> None:
    def interrupt() -> bool:
        raise KeyboardInterrupt

    machines.instead = interrupt
    with pytest.raises(KeyboardInterrupt):
        run_series(grid, tmp_path / "out", place, show=False)
    assert len(cloud.machines()) == 6
    made = {machine["InstanceId"] for machine in cloud.machines()}
    machines.instead = lambda: len(made) == 6 and made == {m["InstanceId"] for m in cloud.machines()} and interrupt()
    with pytest.raises(KeyboardInterrupt):
        run_series(grid, tmp_path / "out", place, show=False)
    assert run_series(grid, tmp_path / "out", place, show=False) == {}
    assert machines.waited == [BASELINE, BASELINE, *[cell.name for cell in grid.cells]]
    assert left(place, grid) == []


def test_what_finished_in_the_meantime_is_fetched_without_a_launch(
    cloud: Cloud, grid: Grid, place: AwsSwarms, machines: Machines, tmp_path: Path
) -> None:
    assert grid.baseline is not None
    assert place.train(grid.baseline, tmp_path / "lost", lambda step: None) is None
    before = len([request for request in cloud.endpoint.asked if request.action == "RunInstances"])
    assert place.train(grid.baseline, tmp_path / "out", lambda step: None) is None
    assert (tmp_path / "out" / BASELINE / COORDINATOR / "summary.json").exists()
    assert len([request for request in cloud.endpoint.asked if request.action == "RunInstances"]) == before


def test_a_lost_coordinator_is_replaced(
    cloud: Cloud, grid: Grid, place: AwsSwarms, machines: Machines, tmp_path: Path
) -> None:
    def lose() -> bool:
        (coordinator,) = cloud.machines("coordinator")
        cloud.client("ec2").terminate_instances(InstanceIds=[coordinator["InstanceId"]])
        return False

    assert grid.baseline is not None
    machines.instead = lose
    assert place.train(grid.baseline, tmp_path / "out", lambda step: None) is None
    assert machines.waited == [BASELINE, BASELINE]
    assert left(place, grid) == []


def test_a_swarm_that_ends_before_its_time_is_removed_and_told(
    cloud: Cloud, grid: Grid, place: AwsSwarms, machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "wait", lambda run, out, listen: False)
    failed = run_series(grid, tmp_path / "out", place, show=False)
    folder = f"s3://results/btard/{place.run_id(grid.cells[0])}"
    gone = "ended before its time, and its trainers' disks are gone; to begin again, empty"
    assert failed[BASELINE] == f"{gone} {folder}"
    assert "not begun" in failed[grid.attacks[0].name]
    assert left(place, grid) == []


def test_what_is_still_ending_is_removed_at_a_later_try(
    cloud: Cloud, grid: Grid, place: AwsSwarms, machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    stop, busy = aws.stop, [True, True, False]
    monkeypatch.setattr(aws, "stop", lambda run, out: not busy.pop(0) and stop(run, out))
    monkeypatch.setattr(aws, "sleep", pauses.append)
    assert grid.baseline is not None
    assert place.train(grid.baseline, tmp_path / "out", lambda step: None) is None
    assert tuple(pauses) == aws.STOP_PAUSES and busy == []
    busy[:] = [True] * 3
    again = place.train(grid.baseline, tmp_path / "again", lambda step: None)
    assert again == f"has left something on AWS: `stop` run {place.run_id(grid.baseline)} again"
    assert left(place, grid) == []


def test_what_stands_in_the_way_is_told_before_anything_is_launched(
    cloud: Cloud, grid: Grid, place: AwsSwarms, machines: Machines, tmp_path: Path
) -> None:
    cloud.client("ec2").delete_key_pair(KeyName="laptop")
    failed = run_series(grid, tmp_path / "out", place, show=False)
    assert failed[BASELINE] == "was not launched; the reasons are printed above"
    assert "laptop" in cloud.capture.readouterr().out
    assert cloud.machines() == []


def test_the_command_plans_hours_and_dollars_and_removes_what_is_there(
    cloud: Cloud, grid: Grid, machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "Account", lambda region, profile: cloud.account)
    out = tmp_path / "out"
    words = [str(tmp_path / "grid.yaml"), "--out", str(out), "--aws", str(cloud.file)]
    assert main([*words, "--plan", "--aws.wait_minutes", "0"]) == 0
    printed = cloud.capture.readouterr().out
    assert "On AWS, one after another" in printed and "sign-flip-from-20-btard-seed-0" in printed
    row = next(line for line in printed.splitlines() if "│baseline " in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells[2:4] == ["40", "1.3"]  # half an hour, and 40 steps at 50 an hour
    assert cloud.endpoint.changes() == []

    def interrupt() -> bool:
        raise KeyboardInterrupt

    machines.instead = interrupt
    assert main(words) == 130
    assert len(cloud.machines()) == 6
    assert main([*words, "--stop"]) == 0
    assert cloud.machines() == []
    assert left(machines.place, grid) == []


def test_the_data_are_copied_once(cloud: Cloud, place: AwsSwarms, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "train.bin").write_text("words")
    (folder / "tokenizer/tokenizer.json").write_text("{}")
    place.put_data(folder)
    listed = cloud.client("s3").list_objects_v2(Bucket="data")["Contents"]
    assert [entry["Key"] for entry in listed] == ["wikitext/tokenizer/tokenizer.json", "wikitext/train.bin"]
    assert "s3://data/wikitext: 1 files copied, 1 were there" in cloud.capture.readouterr().out
    (folder / "train.bin").write_text("more words")
    place.put_data(folder)
    assert "1 files copied, 1 were there" in cloud.capture.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--bucket", "null"], "bucket: expected a name, got null; what swarms leave comes from it: --aws.bucket NAME"),
        (["--run_id", "a-name-that-is-long"], "run_id: expected at most 17 characters for a series"),
    ],
)
def test_settings_that_a_series_cannot_work_with(cloud: Cloud, changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AwsSwarms.of_file(cloud.file, changes)


def test_the_papers_series_fits_into_a_machines_start_up_script(cloud: Cloud, tmp_path: Path) -> None:
    words = ["--bucket", "results", "--code.repository", "https://example.org/btard.git", "--region", "us-east-1"]
    place = AwsSwarms.of_file(CONFIGS / "aws.yaml", words)
    place.account = cloud.account
    grid = read_grid(CONFIGS / "experiments/paper.yaml")
    images = {"coordinator": "ami-1", "trainer": "ami-2"}
    for cell in (grid.cells[0], grid.cells[-1]):
        run = place.run_of(cell, tmp_path, "s3://results/btard/albert-012345/checkpoints/step-00004950.safetensors")
        assert run.config.hours <= run.config.max_hours <= 168
        charter = Charter(now(), now(), "settings", "0" * 40, images)  # type: ignore[arg-type]
        for role in ("coordinator", "honest", "byzantine"):
            assert user_data(run, role, charter, swarm_settings(run.config))  # type: ignore[arg-type]
    baseline, attack = place.hours(grid.cells[0]), place.hours(grid.cells[1])
    assert (baseline, attack) == (0.5 + 5250 / 50, 0.5 + 300 / 50)
    assert isinstance(grid.cells[0].config, Config)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_notebook_runs_from_top_to_bottom_with_swarms_that_finished_on_aws(
    cloud: Cloud, grid: Grid, place: AwsSwarms, tmp_path: Path
) -> None:
    pytest.importorskip("papermill")
    for cell in grid.cells:
        finish(cloud, cell, place.run_id(cell), tmp_path / "machines")
    parameters = {
        "MODE": "aws",
        "GRID": str(tmp_path / "grid.yaml"),
        "OUT": str(tmp_path / "out"),
        "DATA": str(tmp_path / "data"),
        "PREPARE": ["--source", "synthetic", "--sequence-length", "32"],
        "AWS": str(cloud.file),
        "AWS_CHANGES": ["--wait_minutes", "0"],
        "TENSORBOARD": False,
    }
    outputs = notebooks.execute(ROOT / "notebooks/RunAlbertExperiments.ipynb", tmp_path / "out.ipynb", parameters)
    assert notebooks.images(outputs) == 5
    printed = notebooks.text(outputs)
    for part in (
        "On AWS, one after another",
        "files copied",
        "| sign flip | 20 | mean | 1 | 0 of 2 |",
        "wrong_gradient",
    ):
        assert part in printed
    assert {path.parent.name for path in (tmp_path / "out").glob("*/coordinator")} == {cell.name for cell in grid.cells}
