"""The notebook runs from top to bottom, and is the one that the repository's figures come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet.experiments.grid import read_grid
from tests.notebooks import notebooks
from tests.notebooks.notebooks import ROOT

pytestmark = notebooks.needs("papermill")

NOTEBOOK = ROOT / "notebooks/RunResNetExperiments.ipynb"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_notebook_runs_from_top_to_bottom_at_its_smallest_setting(tmp_path: Path) -> None:
    few = ["--steps", "12", "--eval_every", "3", "--attack.start", "2"]  # the first is banned in step 4
    parameters = {
        "OUT": str(tmp_path / "sweep"),
        "FIRST": str(tmp_path / "first"),
        "CHANGES": few,
        "FIRST_CHANGES": few,
    }
    with notebooks.without_tensorboards(tmp_path):
        outputs = notebooks.execute(NOTEBOOK, tmp_path / "out.ipynb", parameters)
    assert notebooks.images(outputs) >= 3  # the first attack, accuracy per attack, survival
    notebooks.check_tensorboard_is_shown(outputs)
    printed = notebooks.text(outputs)
    assert "banned peer" in printed and "All 6 runs are finished" in printed
    assert len(list((tmp_path / "sweep/runs").rglob("summary.json"))) == 6


def test_the_notebook_has_one_cell_of_parameters_and_calls_the_packages_for_all_else() -> None:
    notebooks.check_it_only_calls(NOTEBOOK)


def test_the_notebook_is_stored_with_figures_and_without_private_paths() -> None:
    notebooks.check_it_is_stored_with_outputs(NOTEBOOK, figures=3)


def test_the_pages_know_how_many_runs_the_papers_setting_has() -> None:
    runs = f"{len(read_grid(ROOT / 'configs/resnet/paper.yaml').cells):,} runs"
    for page in (NOTEBOOK, ROOT / "docs/simulating.md"):
        assert runs in page.read_text(encoding="utf-8")
