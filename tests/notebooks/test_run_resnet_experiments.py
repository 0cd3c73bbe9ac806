"""The notebook runs from top to bottom, and is the one that the repository's figures come from."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

papermill = pytest.importorskip("papermill")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks/RunResNetExperiments.ipynb"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    from tensorboard import manager

    for server in manager.get_all():
        if str(tmp_path) in server.logdir:
            os.kill(server.pid, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_notebook_runs_from_top_to_bottom_at_its_smallest_setting(folder: Path) -> None:
    few = ["--steps", "84", "--eval_every", "21"]
    parameters = {
        "OUT": str(folder / "sweep"),
        "FIRST": str(folder / "first"),
        "CHANGES": few,
        "FIRST_CHANGES": few,
    }
    papermill.execute_notebook(
        NOTEBOOK, folder / "out.ipynb", parameters, cwd=NOTEBOOK.parent, kernel_name="python3", progress_bar=False
    )
    cells = nbformat.read(folder / "out.ipynb", as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) >= 3  # the first attack, accuracy per attack, survival
    printed = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    assert "banned peer" in printed and "All 6 runs are finished" in printed
    assert len(list((folder / "sweep/runs").rglob("summary.json"))) == 6


def test_the_notebook_has_one_cell_of_parameters_and_calls_the_packages_for_all_else() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell for cell in code if "parameters" in cell.metadata.get("tags", [])] == code[:1]
    for cell in code[1:]:
        assert "def " not in cell.source and "class " not in cell.source and len(cell.source.splitlines()) <= 20


def test_the_notebook_is_stored_with_figures_and_without_private_paths() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert not [output for output in outputs if output.output_type == "error"]
    text = nbformat.writes(notebook)
    for private in ("/root/", "/home/", "/tmp/"):
        assert private not in text
