"""The comparison with other packages: what is the same, what counts as explained, and what the stored table says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version as installed
from pathlib import Path

import pytest
import torch
from torch import Tensor

from btard.aggregation import AGGREGATORS
from btard.attacks import ATTACKS
from scripts.conformance import __main__ as conformance
from scripts.conformance.harm import ours as searched
from scripts.conformance.inputs import inputs
from scripts.conformance.ours import attack, krum_with, lower_median, rule, spread
from scripts.conformance.pairs import PACKAGES, Pair

RESULTS = Path(__file__).parents[2] / conformance.OUT
STORED = json.loads((RESULTS / "results.json").read_text())
GIVEN = [item for item in inputs() if item.x.shape == (11, 3)]


def far(x: Tensor, f: int) -> Tensor:
    return x.mean(dim=0) * 2


def pair(other: object, why: str = "", alike: object = None) -> Pair:
    return Pair("mean", "Mean", rule("mean"), other, why, alike)  # type: ignore[arg-type]


def test_equal_results_are_the_same_and_others_need_a_reason_that_holds() -> None:
    same = conformance.compared("p", pair(lambda x, f: x.sum(dim=0) / len(x)), GIVEN)
    assert same["difference"] < 1e-12 and conformance.explained(same)
    unexplained = conformance.compared("p", pair(far), GIVEN)
    assert unexplained["difference"] == pytest.approx(0.5) and not conformance.explained(unexplained)
    right = conformance.compared("p", pair(far, "doubles it", lambda x, f: 2 * x.mean(dim=0)), GIVEN)
    wrong = conformance.compared("p", pair(far, "triples it", lambda x, f: 3 * x.mean(dim=0)), GIVEN)
    assert conformance.explained(right) and not conformance.explained(wrong)
    nan = conformance.compared("p", pair(lambda x, f: x[0] * float("nan")), GIVEN)
    assert nan["difference"] == float("inf")


def test_ours_in_their_way_by_hand() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0], [20.0]]).double()
    assert lower_median(x[:4], 0).item() == 1 and lower_median(x, 0).item() == 3
    # n = 5, f = 1. Two others each: 0 has 1 and 3, 1 has 1 and 2, 3 has 2 and 3; squares 10, 5, 13.
    assert krum_with(fewer=2, power=2, many=False)(x, 1).item() == 1 == rule("krum")(x, 1).item()
    # Three others each: squares 59, 41, 29, 101; lengths 11, 9, 9, 17, and of the equal ones the lower index.
    assert krum_with(fewer=1, power=2, many=False)(x, 1).item() == 3
    assert krum_with(fewer=1, power=1, many=True)(x, 1).item() == pytest.approx(11 / 4)
    assert spread(x[:2], factor=2.0, sample=False).item() == 1.5
    assert spread(x[:2], factor=2.0, sample=True).item() == pytest.approx(0.5 + 2**0.5)
    assert attack("copy", victim=1)(x, 2).item() == 1


def test_inputs_are_the_same_every_time_and_hostile_rows_are_far() -> None:
    assert [item.name for item in inputs()] == [item.name for item in inputs()]
    first, again = next(iter(inputs())), next(iter(inputs()))
    assert torch.equal(first.x, again.x)
    hostile = next(item for item in GIVEN if item.name.startswith("hostile"))
    assert hostile.x[: hostile.f].norm(dim=1).min() > 100 * hostile.x[hostile.f :].norm(dim=1).max()


def test_a_searching_attacker_is_given_the_rule() -> None:
    x = torch.tensor([[1.0], [3.0]]).double()
    assert searched("ipm_search", x, 1, lambda rows, f: rows.mean(dim=0)).item() == -32  # the limit, 16, times mu


def test_what_is_missing_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def absent() -> Iterator[Pair]:
        raise ImportError("No module named 'nowhere'")
        yield

    monkeypatch.setattr("scripts.conformance.pairs.PACKAGES", {"nowhere": absent})
    assert conformance.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: nowhere: No module named 'nowhere'; pip install --target DIR --no-deps byzfl byzpy ")
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_results_are_written_and_an_unexplained_difference_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("scripts.conformance.inputs.inputs", lambda: GIVEN[:2])
    monkeypatch.setattr("scripts.conformance.harm.harms", lambda given: STORED["harm"])
    monkeypatch.setattr(conformance, "version", lambda name: "1" if name == "p" else installed(name))
    for other, code in ((lambda x, f: x.mean(dim=0), 0), (far, 1)):
        monkeypatch.setattr("scripts.conformance.pairs.PACKAGES", {"p": lambda other=other: iter([pair(other)])})
        assert conformance.main(["--out", str(tmp_path)]) == code
        assert json.loads((tmp_path / "results.json").read_text())["versions"]["p"] == "1"
        assert "| `mean` | p | `Mean` |" in (tmp_path / "README.md").read_text()
    assert "error: mean and p's Mean differ, and nothing says why" in capsys.readouterr().out


def test_the_stored_table_is_of_these_results_and_leaves_nothing_unexplained() -> None:
    assert (RESULTS / "README.md").read_text() == conformance.table(STORED)
    assert STORED["inputs"] == len(list(inputs())) and all(map(conformance.explained, STORED["pairs"]))
    assert {line["package"] for line in STORED["pairs"]} == set(PACKAGES)
    names = {line["ours"] for line in STORED["pairs"]}
    assert names <= {*AGGREGATORS, *ATTACKS, "nnm", "bucketing"} and names >= {*AGGREGATORS, "nnm", "bucketing"}
