"""What holds for every notebook of the repository, and how one is run."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def needs(*packages: str) -> pytest.MarkDecorator:
    """Skips a file's tests without these packages, which are not imported: that takes seconds."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def execute(notebook: Path, out: Path, parameters: dict[str, Any]) -> list[Any]:
    """Run a notebook from top to bottom with these parameters, and return what its cells put out; none is an error."""
    import nbformat  # takes a second of every process that collects tests
    import papermill

    papermill.execute_notebook(
        notebook, out, parameters, cwd=notebook.parent, kernel_name="python3", progress_bar=False
    )
    found = outputs_of(nbformat.read(out, as_version=4))
    assert not [output for output in found if output.output_type == "error"]
    return found


def outputs_of(notebook: Any) -> list[Any]:
    """All outputs, in order."""
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def images(outputs: list[Any]) -> int:
    """How many of them are figures."""
    return sum("image/png" in output.get("data", {}) for output in outputs)


def text(outputs: list[Any]) -> str:
    """What they say, without colours."""
    said = "".join(
        output.get("text", "")
        + output.get("data", {}).get("text/markdown", output.get("data", {}).get("text/plain", ""))
        for output in outputs
    )
    return re.sub(r"\x1b\[[0-9;]*m", "", said)


def check_tensorboard_is_shown(outputs: list[Any]) -> None:
    """TensorBoard has started, and is there to look at."""
    assert [output for output in outputs if "tensorboard-frame" in str(output.get("data", {}).get("text/html", ""))]


@contextmanager
def without_tensorboards(folder: Path) -> Iterator[None]:
    """Ends the TensorBoards that show something in the folder."""
    try:
        yield
    finally:
        from tensorboard import manager

        for server in manager.get_all():
            if str(folder) in server.logdir:
                os.kill(server.pid, signal.SIGTERM)


def check_it_only_calls(notebook: Path) -> None:
    """One cell of parameters, the first with code; all others are short and define nothing."""
    import nbformat

    code = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    assert [cell for cell in code if "parameters" in cell.metadata.get("tags", [])] == code[:1]
    for cell in code[1:]:
        assert "def " not in cell.source and "class " not in cell.source and len(cell.source.splitlines()) <= 20


def check_it_is_stored_with_outputs(notebook: Path, figures: int) -> None:
    """It reads well without running, and says nothing of the machine that ran it."""
    import nbformat

    content = nbformat.read(notebook, as_version=4)
    outputs = outputs_of(content)
    assert images(outputs) >= figures
    assert not [output for output in outputs if output.output_type == "error"]
    for private in ("/root/", "/home/", "/tmp/"):
        assert private not in nbformat.writes(content)
