"""What needs the server of Weights & Biases, with one on this machine: the prepared workspace, and a run online."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from albert.workspace import main
from btard.harness.typed_yaml import ConfigError
from btard.swarm import tags, tracking
from btard.swarm.config import AttackConfig
from btard.swarm.tracking import WANDB_ID, WeightsAndBiases
from tests.albert.trainers import tiny
from tests.albert.wandb_server import WandbServer

KEY = "0123456789" * 4


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """The server that wandb talks to, with a key for it."""
    wandb = pytest.importorskip("wandb")
    pytest.importorskip("wandb_workspaces")
    found = WandbServer()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", found.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    wandb.teardown()  # what it has read of the environment before
    yield found
    wandb.teardown()
    found.close()


def test_the_workspace_is_saved_once_with_all_its_charts(
    server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["a-project"]) == 0
    (saved,) = server.asked["UpsertView2"]
    assert (saved["entityName"], saved["projectName"], saved["displayName"]) == ("a-team", "a-project", "BTARD swarm")
    assert saved["type"] == "project-view"
    section = json.loads(saved["spec"])["section"]
    bank = section["panelBankConfig"]["sections"]
    assert [part["name"] for part in bank] == list(tags.SECTIONS) and all(part["isOpen"] for part in bank)
    assert section["settings"]["xAxis"] == "step"
    first = bank[0]["panels"][0]["config"]
    assert first["metrics"] == [tags.TAGS[name] for name in ("loss", "loss_at_ban", "loss_at_healing")]
    assert first["xAxis"] == "step"
    kinds = bank[2]["panels"][0]["config"]
    assert kinds["metricRegex"] == "^bans/" and kinds["useMetricRegex"] is True
    said = capsys.readouterr()
    assert said.out.startswith(f"workspace: {server.url}/a-team/a-project?nw=") and KEY not in said.out + said.err
    assert main(["a-project", "--entity", "others", "--name", "mine"]) == 0
    assert [server.asked["UpsertView2"][-1][name] for name in ("entityName", "displayName")] == ["others", "mine"]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("refused", "a-project of a-team at http://127.0.0.1:"),
        ("no key", "not logged in to Weights & Biases; run `wandb login`, or set WANDB_API_KEY\n"),
        (
            "offline",
            "a workspace is kept by the server of Weights & Biases, and WANDB_MODE says to send nothing; unset",
        ),
        ("not installed", "wandb-workspaces is not installed; pip install 'wandb-workspaces>="),
    ],
)
def test_a_workspace_that_cannot_be_saved_says_what_to_do(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str, message: str
) -> None:
    server.refuse = what == "refused"
    if what == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    if what == "offline":
        monkeypatch.setenv("WANDB_MODE", "offline")
    if what == "not installed":
        monkeypatch.setitem(__import__("sys").modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(SystemExit) as ended:
        main(["a-project"])
    said = capsys.readouterr().err
    line = said[said.index("error:") :]
    assert ended.value.code == 2 and line.startswith(f"error: python -m albert.workspace: {message}"), said
    assert line.count("\n") == 1 and KEY not in said
    if what == "refused":
        assert "expected a project that you may change: check its name, --entity, key (`wandb login`)" in line


@pytest.mark.slow
def test_a_run_online_keeps_its_id_and_outlives_the_server(
    server: WandbServer, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "FINISH", 2.0)
    config = tiny(data, wandb="a-project", byzantine=1, attack=AttackConfig(name="sign_flip", start=1))
    said: list[str] = []
    for interrupted in (True, False):
        tracker = WeightsAndBiases(config, tmp_path, said.append)
        tracker.log(int(not interrupted), {"loss/validation": 1.0})
        if interrupted:
            tracker.finish(None)
    id_ = (tmp_path / WANDB_ID).read_text().strip()
    assert {asked["name"] for asked in server.asked["RunResumeStatus"]} == {id_}
    assert {asked["name"] for asked in server.asked["UpsertBucket"]} == {id_}
    assert said == [f"Weights & Biases: {server.url}/a-team/a-project/runs/{id_}"] * 2
    server.close()
    started = time.monotonic()
    summary = {"byzantine": [1], "loss": 1.0, "bans": [{"step": 1, "peer": 1, "kind": "silent", "accusers": []}]}
    tracker.finish(summary)
    assert time.monotonic() - started < 30
    assert "not all has arrived" in said[-1] and f"`wandb sync {tmp_path}/wandb/run-" in said[-1]


def test_a_server_that_refuses_is_named_before_the_swarm_starts(
    server: WandbServer, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 5.0)
    server.refuse = True
    with pytest.raises(ConfigError, match=r"wandb: the run could not begin \(.*\); check network and key") as raised:
        WeightsAndBiases(tiny(data, wandb="a-project"), tmp_path, print)
    assert KEY not in str(raised.value) and "\n" not in str(raised.value)
