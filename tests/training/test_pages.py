"""docs/your-own-model.md works when it is typed in; docs/api.md is what the docstrings say, and their examples run."""

from __future__ import annotations

import doctest
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import btard
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
        exec(compile(block, str(PAGE), "exec"), space)  # noqa: S102  (our own page)
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
