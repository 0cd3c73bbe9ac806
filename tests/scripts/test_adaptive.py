"""Fast versions of the experiments on when attackers are banned: the law holds, and its test can fail."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts import adaptive, ban_times

SMALL: dict[str, Any] = {"peers": 6, "byzantine": 2, "validators": 1}


@pytest.mark.parametrize("strategy", list(adaptive.STRATEGIES))
def test_no_strategy_changes_the_chance_to_be_caught(strategy: str) -> None:
    outcomes = [adaptive.run_once(strategy, seed, limit=25, **SMALL) for seed in range(5)]
    assert abs(adaptive.z_score(outcomes)) < adaptive.critical_z(len(adaptive.STRATEGIES))
    assert sum(fate.attacks for outcome in outcomes for fate in outcome.fates.values()) > 5
    assert not sum(outcome.honest_banned for outcome in outcomes)


def test_two_validators_at_once() -> None:
    outcomes = [
        adaptive.run_once("always", seed, peers=7, byzantine=2, validators=2, limit=25) for seed in range(100, 108)
    ]
    assert abs(adaptive.z_score(outcomes)) < adaptive.critical_z(1)
    assert sum(fate.caught for outcome in outcomes for fate in outcome.fates.values()) == 16


def test_a_wrong_law_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    law = adaptive.chances_to_be_caught

    def too_low(*counts: int) -> tuple[float, float]:
        p, q = law(*counts)
        return p / 3, q

    monkeypatch.setattr(adaptive, "chances_to_be_caught", too_low)
    outcomes = [adaptive.run_once("always", seed, limit=25, **SMALL) for seed in range(5)]
    assert abs(adaptive.z_score(outcomes)) > adaptive.critical_z(len(adaptive.STRATEGIES))


def test_survival_by_hand() -> None:
    left = adaptive.survival([1, 2, 2, 3], [True, True, False, True], 5)
    assert left[:4].tolist() == [1.0, 0.75, 0.5, 0.0] and math.isnan(left[4])


def test_critical_values() -> None:
    assert ban_times.critical_value(1) == pytest.approx(1.628, abs=1e-3)
    assert adaptive.critical_z(1) == pytest.approx(2.576, abs=1e-3)
    assert adaptive.critical_z(6) == pytest.approx(3.144, abs=1e-3)


def test_a_row_for_each_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attacks = ["sign_flip", "zero", "delayed_gradient"]
    words = ["--runs", "2", "--peers", "6", "--byzantine", "2", "--validators", "1", "--attack", *attacks]
    monkeypatch.setattr(sys, "argv", ["ban_times", "--out", str(tmp_path), *words])
    ban_times.main()
    cases = json.loads((tmp_path / "results.json").read_text())
    assert [case["attack"] for case in cases] == attacks
    assert all(case["ks_critical"] == ban_times.critical_value(3) / np.sqrt(2) for case in cases)
    assert (tmp_path / "table.md").read_text().count("| 1 | 2 | 0 |") == 3
    assert {file.suffix for file in tmp_path.glob("survival.*")} == {".png", ".svg"}
