"""The notebook runs from top to bottom in its local mode, and is stored with figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.notebooks import notebooks
from tests.notebooks.notebooks import ROOT

pytestmark = notebooks.needs("papermill", "hivemind")

NOTEBOOK = ROOT / "notebooks/RunAlbertExperiments.ipynb"
SMALLEST = f"""
title: The smallest series
base: {ROOT}/configs/albert/tiny.yaml
settings: {{run_id: smallest, peers: 5, byzantine: 2, checkpoint_every: 4, batch.total: 15, batch.per_device: 5}}
attacks: {{sign flip: {{attack.name: sign_flip}}}}
defences:
  BTARD: {{}}
  mean: {{protocol.tau: .inf, protocol.validators: 0}}
starts: [8]
lead: 2
after: 10
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_notebook_runs_from_top_to_bottom_at_its_smallest_setting(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(SMALLEST)
    parameters = {
        "GRID": str(tmp_path / "grid.yaml"),
        "OUT": str(tmp_path / "series"),
        "DATA": str(tmp_path / "data"),
        "PREPARE": ["--source", "synthetic", "--sequence-length", "32"],
    }
    with notebooks.without_tensorboards(tmp_path):
        outputs = notebooks.execute(NOTEBOOK, tmp_path / "out.ipynb", parameters)
    assert notebooks.images(outputs) == 5  # loss, validation loss, alive peers, speed, phases
    printed = notebooks.text(outputs)
    assert "3 swarms, 3 to run" in printed
    for row in ("| sign flip | 8 | BTARD, tau auto, healed | 1 |", "| sign flip | 8 | mean | 1 | 0 of 2 |"):
        assert row in printed
    swarms = {
        file.parts[-3]: json.loads(file.read_text()) for file in tmp_path.glob("series/*/coordinator/summary.json")
    }
    assert set(swarms) == {"baseline", "sign-flip-from-8-btard-seed-0", "sign-flip-from-8-mean-seed-0"}
    bans = swarms["sign-flip-from-8-btard-seed-0"]["bans"]
    assert printed.count("| wrong_gradient |") == len(bans) == printed.count("gradient recomputed")
    assert "refused:" not in printed
    notebooks.check_tensorboard_is_shown(outputs)


def test_the_notebook_has_one_cell_of_parameters_and_calls_the_packages_for_all_else() -> None:
    notebooks.check_it_only_calls(NOTEBOOK)
