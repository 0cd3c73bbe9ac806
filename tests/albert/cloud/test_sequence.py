"""Runs one after another in one process, as a notebook has them: launched, waited for, fetched, stopped."""

from __future__ import annotations

import os
import re
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from albert.cloud.config import load
from albert.cloud.costs import dollars_per_hour
from albert.cloud.fetch import fetch
from albert.cloud.launch import launch
from albert.cloud.run import Run
from albert.cloud.stop import leftovers, stop
from albert.cloud.wait import wait
from tests.albert.cloud.conftest import Cloud
from tests.albert.cloud.endpoint import Request
from tests.albert.cloud.folders import checkpoint, peer, put, record

ROOT = Path(__file__).parents[3]
NAME = "checkpoints/step-00000950.safetensors"
CELLS = [
    """\
from pathlib import Path
from rich.console import Console
from albert.cloud import account, wait as waiting
from albert.cloud.account import Account
from albert.cloud.config import load
from albert.cloud.fetch import fetch
from albert.cloud.launch import launch
from albert.cloud.run import Run
from albert.cloud.stop import stop
from albert.cloud.wait import wait
account.POLL_SECONDS = waiting.POLL_SECONDS = 0.05
out = Console()
starts = {"base": "null", "attack": "s3://results/btard/base/checkpoints/step-00000950.safetensors"}
runs = {}
for name, start in starts.items():
    config = load(Path("aws.yaml"), ["--run_id", name, "--swarm.start_from", start])
    runs[name] = Run(Account(config.region, config.profile), config)
""",
    *(f"""\
run = runs["{name}"]
print(launch(run, out, lambda question, default: default))
print(wait(run, out))
print(fetch(run, Path("{name}"), out))
print(stop(run, out))
""" for name in ("base", "attack")),
]  # fmt: skip


def play(cloud: Cloud) -> None:
    """Each run writes its status when it has been looked for, and finishes at the fourth look."""
    looks: dict[str, int] = {}

    def rule(request: Request) -> None:
        found = re.fullmatch(r"/results/btard/(\w+)/status.json", str(request.arguments.get("path")))
        if request.action != "GetObject" or found is None:
            return
        name = found[1]
        looks[name] = looks.get(name, 0) + 1
        if looks[name] <= 3:
            put(cloud, "status.json", record([peer(0)], step=300 * looks[name], steps=1250), name)
        else:
            put(cloud, NAME, checkpoint(950), name)
            put(cloud, "summary.json", "{}", name)

    cloud.endpoint.rules.append(rule)


def test_a_baseline_and_an_attack_from_its_checkpoint(cloud, tmp_path, monkeypatch):
    monkeypatch.setattr("albert.cloud.wait.sleep", lambda seconds: None)
    monkeypatch.setattr("albert.cloud.wait.LOG_SECONDS", 0.0)
    play(cloud)
    out = Console(file=StringIO(), width=200)
    for name, start in (("base", "null"), ("attack", f"s3://results/btard/base/{NAME}")):
        run = Run(cloud.account, load(cloud.file, ["--run_id", name, "--swarm.start_from", start]))
        assert dollars_per_hour(run)[0] > 0
        assert launch(run, out, lambda question, default: default)
        assert wait(run, out)
        assert fetch(run, tmp_path / "runs" / name, out) == 3
        assert stop(run, out)
        assert leftovers(run) == []
        assert (tmp_path / "runs" / name / NAME).read_bytes() == checkpoint(950)
        assert not launch(run, out, lambda question, default: default)  # a cell that is run again costs nothing
        assert wait(run, out)
        assert fetch(run, tmp_path / "runs" / name, out) == 3
        assert leftovers(run) == []
    printed = out.file.getvalue()
    assert printed.count("run attack: step 600 of 1250") == 1
    assert "run attack has finished" in printed


@pytest.mark.slow
def test_in_a_notebook_it_prints_tables_and_one_bar_for_each_wait(cloud, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setitem(os.environ, "PYTHONPATH", str(ROOT))
    monkeypatch.setitem(os.environ, "IPYTHONDIR", str(tmp_path / "ipython"))
    play(cloud)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    nbclient.NotebookClient(
        notebook, timeout=100, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    first, *cells = [cell.outputs for cell in notebook.cells]
    assert first == []
    for name, outputs in zip(("base", "attack"), cells, strict=True):
        streams = [output.text for output in outputs if output.output_type == "stream"]
        assert "".join(streams).split() == ["True", "True", "3", "True"], streams
        shown = [output.data["text/plain"] for output in outputs if output.output_type == "display_data"]
        assert all("text/html" in output.data for output in outputs if output.output_type == "display_data")
        bars = [text for text in shown if "━" in text]
        assert [text.split(" ")[0] for text in bars] == ["run", "fetch"]  # drawn over in their place
        assert "step 900 of 1250" in bars[0] and "3 of 3 files" in bars[1]
        text = "".join(shown)
        assert f"run {name} has finished" in text and f"nothing of run {name} is left" in text
        assert "ipywidgets" not in text
    for name in ("base", "attack"):
        run = Run(cloud.account, load(cloud.file, ["--run_id", name]))
        assert leftovers(run) == []
