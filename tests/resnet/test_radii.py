"""The paper's radii at other widths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from resnet import radii
from resnet.radii import PartNorms, counterpart, main

DIGITS = str(Path(__file__).parents[2] / "configs/resnet/digits.yaml")


def test_a_radius_keeps_its_size_beside_an_honest_part() -> None:
    here, standard = PartNorms(16, 1, 1.6, 1.0, 2.0), PartNorms(64, 1, 3.2, 2.0, 4.0)
    assert counterpart(10.0, here, standard) == 5.0


def test_the_file_has_a_row_for_each_width(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(radii, "STANDARD", 4)
    monkeypatch.setattr(radii, "SEEDS", 1)
    file = tmp_path / "radii.json"
    words = [DIGITS, "--out", str(file), "--widths", "2", "--peers", "4", "--batch_size", "2", "--threads", "1"]
    assert main(words) == 0
    narrow, standard = json.loads(file.read_text())["widths"]
    assert (narrow["width"], standard["width"]) == (2, 4)
    assert 0 < narrow["lowest"] <= narrow["median"] <= narrow["highest"]
    assert standard["radii"] == {"1": 1.0, "10": 10.0}
    assert narrow["radii"]["1"] == pytest.approx(narrow["median"] / standard["median"])
    assert "tau 10" in capsys.readouterr().out
