"""Whether a machine gives the same bits twice, and how far apart its ways to compute are: of a tiny ALBERT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from albert.calibrate import main
from albert.task import AlbertTask
from btard.harness.settings import config_text
from tests.albert.trainers import tiny


def calibrate(data: Path, tmp_path: Path, *words: str) -> dict[str, dict[str, list[float]]]:
    file = tmp_path / "swarm.yaml"
    file.write_text(config_text(tiny(data, steps=50)))
    assert main([str(file), "--out", str(tmp_path / "out"), "--steps", "2", "--samples", "3", *words]) == 0
    return json.loads((tmp_path / "out/calibration.json").read_text())


def test_the_same_bits_again_and_nearly_so_with_other_threads(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    found = calibrate(data, tmp_path)
    assert found["ways"]["again"] == [0.0] * 6
    assert max(found["ways"]["other threads"]) < 1e-4
    assert found["proposals"]["one kind of machine, one precision"]["validations"] == 50
    said = capsys.readouterr().out
    assert "exact: yes, 6 of 6 gradients had the same bits" in said
    assert torch.get_num_threads() == threads


def test_a_machine_that_does_not_repeat_itself_is_told_apart(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = AlbertTask.gradients
    count = 0

    def wavering(self, params, requests, out, **options):  # type: ignore[no-untyped-def]
        nonlocal count
        right(self, params, requests, out, **options)
        for row in out:
            count += 1
            row *= 1 + 1e-6 * (count % 7)

    monkeypatch.setattr(AlbertTask, "gradients", wavering)
    calibrate(data, tmp_path)
    said = capsys.readouterr().out
    assert "exact: NO, only" in said and "set protocol.validation tolerant" in said
    assert "tolerant, one kind of machine, one precision: protocol.gradient_tol" in said


def test_mistakes_are_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--samples", "0"], ["--data.path", str(tmp_path / "nowhere")]):
        with pytest.raises(SystemExit, match="2"):
            calibrate(data, tmp_path, *words)
        assert capsys.readouterr().err.count("\n") == 1
