"""The notebook about one's own model runs from top to bottom, and is stored as it ran."""

from __future__ import annotations

from pathlib import Path

from tests.notebooks import notebooks
from tests.notebooks.notebooks import ROOT

pytestmark = notebooks.needs("papermill", "sklearn", "matplotlib")

NOTEBOOK = ROOT / "notebooks/YourOwnModel.ipynb"


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    outputs = notebooks.execute(
        NOTEBOOK, tmp_path / "out.ipynb", {"PEERS": 4, "BYZANTINE": 1, "STEPS": 12, "ATTACK_FROM": 1}
    )
    said = notebooks.text(outputs)
    assert notebooks.images(outputs) == 1 and "1 of 1 attackers banned, 0 honest peers banned" in said
    assert "wrong_gradient accused" in said


def test_the_notebook_has_one_cell_of_parameters_and_is_stored_with_its_figure() -> None:
    import nbformat

    code = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell for cell in code if "parameters" in cell.metadata.get("tags", [])] == code[:1]
    notebooks.check_it_is_stored_with_outputs(NOTEBOOK, figures=1)
