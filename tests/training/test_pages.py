"""docs/your-own-model.md works when it is typed in; docs/api.md is what the docstrings say, and their examples run."""

from __future__ import annotations

import doctest
import importlib
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import btard
from btard.audit.__main__ import main as audit
from btard.harness.settings import read_config
from btard.swarm.config import SwarmConfig
from btard.swarm.task import load_task, ready
from scripts import api_docs

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/your-own-model.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_blocks_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, Any] = {"__name__": "docs.your_own_model"}
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), space)  # noqa: S102  (our own page)
    said = capsys.readouterr().out.splitlines()
    claimed = re.findall(r"print\(run\)  # (.*)", PAGE.read_text())
    assert said[0].split(", loss")[0] == claimed[0].split(", loss")[0]
    assert said[0].partition("0.")[2].partition(", ")[2] == claimed[0].partition("0.")[2].partition(", ")[2]


def test_its_script_makes_a_task_for_its_swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [script] = [block for block in blocks("python") if block.startswith("# my_model.py")]
    (tmp_path / "my_model.py").write_text(script)
    (tmp_path / "swarm.yaml").write_text(blocks("yaml")[0])
    monkeypatch.syspath_prepend(tmp_path)
    config = read_config(SwarmConfig, tmp_path / "swarm.yaml")
    task, optimizer = ready(load_task("my_model:make_task"), config)
    assert task.d == optimizer.params.numel() == 193
    assert f"--task {'my_model:make_task'}" in PAGE.read_text()


def test_its_script_audits_its_own_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make_task` returns (task, optimizer), for a swarm; an audit takes the task of it."""
    [script] = [block for block in blocks("python") if block.startswith("# my_model.py")]
    (tmp_path / "own_model.py").write_text(script.replace("data, 8)", "data, 8, made_by=make_task)"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    own_model = importlib.import_module("own_model")
    task, optimizer = own_model.make_task()
    run = btard.simulate(task, optimizer=optimizer, peers=4, byzantine=1, attack="sign_flip", steps=6, out="run")
    assert [ban.reason for ban in run.bans] == ["wrong_gradient"]
    for words in ([], ["--task", "own_model:make_task"]):
        assert audit(["run", *words]) == 0
        assert "gradient recomputed" in capsys.readouterr().out
    (tmp_path / "wrong_model.py").write_text("def make():\n    return [].d\n\n\ndef none():\n    return 3\n")
    for name, said in (
        ("make", "AttributeError: 'list' object has no attribute 'd'"),
        ("none", "returned int; expected"),
    ):
        assert audit(["run", "--task", f"wrong_model:{name}"]) == 1
        assert f"refused: wrong_model:{name}" in (error := capsys.readouterr().err) and said in error
    (tmp_path / "swarm" / "peer-00").mkdir(parents=True)
    (tmp_path / "swarm" / "peer-00" / "protocol.json").write_text("{}")
    assert audit(["swarm"]) == 1 and "name a peer's, such as swarm/peer-00" in capsys.readouterr().err


def test_the_stored_list_of_names_is_what_the_script_writes(tmp_path: Path) -> None:
    api_docs.main(["--out", str(tmp_path / "api.md")])
    assert (tmp_path / "api.md").read_text() == (ROOT / "docs/api.md").read_text()
    assert sorted(name for names in api_docs.GROUPS.values() for name in names) == sorted(btard.__all__)


@pytest.mark.parametrize("name", btard.__all__)
def test_every_public_name_has_an_example_that_runs(name: str) -> None:
    value = getattr(btard, name)
    doc = api_docs.entry(name) if isinstance(value, dict) else value.__doc__
    example = doctest.DocTestParser().get_doctest(doc.replace("```", ""), {}, name, None, 0)
    assert example.examples
    said: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        doctest.DocTestRunner().run(example, out=said.append)
    assert said == []
