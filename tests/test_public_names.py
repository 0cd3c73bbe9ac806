"""`btard` exports what its page shows, stays light to import, and its example prints what it says it prints."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import btard

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/library.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
EXAMPLE = ROOT / "examples/quadratic.py"
HEAVY = {"rich", "tensorboard", "hivemind", "matplotlib", "wandb", "transformers", "torchvision", "yaml", "vl_convert"}


def modules_after(code: str) -> set[str]:
    """The packages that a fresh interpreter has imported after `code`."""
    program = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(ended.stdout.split())


def test_the_package_alone_imports_no_torch_and_its_names_nothing_that_only_experiments_need() -> None:
    assert not modules_after("import btard") & {"torch", "numpy", *HEAVY}
    assert not modules_after("from btard import *") & HEAVY


def test_all_names_are_there_and_an_unknown_one_is_an_attribute_error() -> None:
    assert btard.__all__ == list(btard._PLACES)
    for name in btard.__all__:
        value = getattr(btard, name)
        assert isinstance(value, dict) or value.__module__.startswith("btard."), name
    assert set(btard.__all__) <= set(dir(btard))
    with pytest.raises(AttributeError, match="module 'btard' has no attribute 'Quadratic'"):
        btard.Quadratic  # noqa: B018


def test_the_blocks_of_the_page_run_and_show_every_name() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    imported = set(re.findall(r"\w+", " ".join(re.findall(r"from btard import (.*)", "\n".join(blocks)))))
    assert imported == set(btard.__all__)
    space: dict[str, object] = {"__name__": "docs.library"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), space)  # noqa: S102  (our own page)


def test_the_driver_in_contributing_runs_a_step_as_the_local_driver_does() -> None:
    [block] = [
        code for code in re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text(), re.DOTALL) if "Wire" in code
    ]
    space: dict[str, Any] = {"__name__": "contributing"}
    exec(compile(block, str(CONTRIBUTING), "exec"), space)  # noqa: S102  (our own page)
    wire = space["driver"]
    local = btard.LocalDriver(next(iter(wire.peers.values())).config, btard.QuadraticTask(16))
    local.step(torch.ones(16))
    for _ in range(2):
        one, two = wire.step(torch.zeros(16)), local.step(torch.zeros(16))
        assert torch.equal(one.gradient, two.gradient) and (one.coin, one.sent) == (two.coin, two.sent)


def test_the_example_prints_what_stands_at_its_end_and_uses_public_names_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = EXAMPLE.read_text()
    assert len(text.splitlines()) <= 150
    assert {line for line in text.splitlines() if re.match(r"\s*(from|import) .*btard", line)} == {
        "from btard import ("
    }
    expected = [line[2:] for line in text.partition("# What it prints:\n")[2].splitlines()[1:]]
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == expected
