"""Gradients under different numerics, what is proposed for them, the command, and mixed cohorts that live by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from btard.attacks import make_attack
from btard.drivers.local import LocalDriver
from btard.harness.settings import parse_command_line, read_config
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.effects import Compute
from btard.protocol.hashing import digest
from btard.protocol.tolerance import difference
from btard.training.vector import flatten
from resnet.calibrate import main
from resnet.calibration import Pair, draw, mixes
from resnet.config import Config
from resnet.data import load_dataset
from resnet.model import resnet18
from resnet.numerics import Numerics, NumericTask, numerics_here
from resnet.sampling import TrainingData
from resnet.task import ClassificationTask

ROOT = Path(__file__).parents[2]
DIGITS = str(ROOT / "configs/resnet/digits.yaml")
DATA = load_dataset("digits")
MODEL = resnet18(2, DATA.classes, DATA.channels, seed=1)
PLAIN = Numerics("plain")
LOW = Numerics("bfloat16", precision="bfloat16")


def requests(count: int = 3) -> list[Compute]:
    return [Compute(0, peer, digest("batch", peer)) for peer in range(count)]


def gradients(numerics: Numerics) -> torch.Tensor:
    out = torch.empty(3, sum(p.numel() for p in MODEL.parameters()))
    NumericTask(MODEL, DATA, 8, numerics).gradients(flatten(MODEL), requests(), out)
    return out


def test_all_numerics_compute_the_same_but_for_rounding() -> None:
    """A seed at which no ReLU flips between ways of computing in float32; bfloat16 has 8 bits of precision."""
    threads = torch.get_num_threads()
    reference = gradients(PLAIN)
    for numerics in numerics_here()[0]:
        for row, expected in zip(gradients(numerics), reference, strict=True):
            apart = difference(row, expected).relative
            if numerics.precision == "float32":
                assert apart < 0.05, numerics
            else:
                assert 1e-3 < apart < 1, numerics
    assert torch.get_num_threads() == threads


def test_one_peer_at_a_time_is_what_the_harness_computes() -> None:
    task = ClassificationTask(MODEL, TrainingData(DATA), peers=3, batch_size=8, mode="per_peer")
    expected = torch.empty(3, task.d)
    task.gradients(flatten(MODEL), requests(), expected)
    assert torch.equal(gradients(Numerics("per peer", way="per_peer")), expected)


def pair(one: Numerics, other: Numerics, errors: list[float]) -> Pair:
    return Pair(one, other, errors, [error**2 / 2 for error in errors])


def test_a_mix_takes_the_pairs_that_can_meet_in_it() -> None:
    folded = Numerics("folded", way="folded")
    pairs = [pair(PLAIN, folded, [1e-6] * 30), pair(PLAIN, LOW, [0.1] * 30), pair(folded, LOW, [0.2] * 30)]
    found = {mix.name: mix for mix in mixes(pairs, validations=100)}
    narrow, wide = found["CPUs in float32"], found["CPUs in float32 and bfloat16"]
    assert narrow.pairs == (pairs[0],) and wide.pairs == tuple(pairs)
    assert narrow.proposal is not None and narrow.proposal.tolerance == pytest.approx(1e-6, rel=0.2)
    assert wide.proposal is not None and 0.2 <= wide.proposal.tolerance < 0.3
    assert narrow.cosine_tol == pytest.approx(0.5e-12, rel=0.3)
    assert found["CPUs and GPUs in float32"].proposal is None
    assert read_yaml(narrow.yaml).protocol.gradient_tol == narrow.proposal.tolerance
    assert len(draw(pairs, list(found.values())).axes) == 3


def read_yaml(text: str) -> Config:
    """The digits with the lines pasted in."""
    settings = yaml.safe_load(text)["protocol"]
    words = [word for key, value in settings.items() for word in (f"--protocol.{key}", str(value))]
    return parse_command_line(Config, [DIGITS, "--out", "unused", *words], "test")[0]


def test_equal_bits_are_validated_exactly() -> None:
    [mix] = [m for m in mixes([pair(PLAIN, Numerics("other"), [0.0] * 30)], 100) if m.name == "CPUs in float32"]
    assert mix.proposal is not None and "validation: exact" in mix.yaml
    assert read_yaml(mix.yaml).protocol.validation == "exact"


def test_the_command_measures_proposes_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [DIGITS, "--out", str(tmp_path), "--steps", "2", "--samples", "2", "--points", "2", "--model.width", "2"]
    assert main(words) == 0
    written = json.loads((tmp_path / "calibration.json").read_text())
    ways, missing = numerics_here()
    assert len(written["pairs"]) == len(ways) * (len(ways) - 1) // 2
    assert all(len(errors["relative"]) == 4 for errors in written["pairs"].values())
    assert written["config"]["model"]["width"] == 2 and set(missing) <= set(written["not_measured"])
    assert {"calibration.png", "calibration.svg", "tolerances.txt"} <= {path.name for path in tmp_path.iterdir()}
    printed = capsys.readouterr().out
    assert "gradient_tol" in printed and all(name in printed for name in missing)
    first = (tmp_path / "tolerances.txt").read_text().split("\n\n")[0]
    (tmp_path / "pasted.yaml").write_text(first)
    assert read_config(Config, tmp_path / "pasted.yaml").protocol.validation == "tolerant"


@pytest.mark.parametrize(("words", "said"), [(["--samples", "0"], "--samples"), (["--model.widht", "2"], "width")])
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([DIGITS, "--out", "unused", *words])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def mixed_run(validation: str, tol: float, ways: dict[int, Numerics], attacked: bool, steps: int) -> set[int]:
    """Who is removed from a cohort whose peers compute in their own `ways`; peer 3 attacks."""
    made = {way: NumericTask(MODEL, DATA, 8, way) for way in set(ways.values())}
    collusion = Collusion(frozenset({3} if attacked else ()), 6)
    driver = LocalDriver(
        ProtocolConfig(6, int(attacked), run_id="mixed", validation=validation, gradient_tol=tol),
        made[ways[0]],
        behaviours={3: make_attack("sign_flip", collusion, scale=1.0)} if attacked else {},
        collusion=collusion,
        tasks={peer: made[way] for peer, way in ways.items()},
    )
    params, removed = flatten(MODEL), set()
    for _ in range(steps):
        result = driver.step(params)
        params = params - 0.05 * result.gradient
        removed |= {peer for entry in result.removed for peer in entry.peers}
        if removed:
            break
    return removed


MIXED = {peer: LOW if peer in (1, 4) else PLAIN for peer in range(6)}


def test_float32_and_bfloat16_peers_train_together_and_catch_an_attacker() -> None:
    assert not mixed_run("tolerant", 0.49, MIXED, attacked=False, steps=12)
    assert mixed_run("tolerant", 0.49, MIXED, attacked=True, steps=60) == {3}
    assert mixed_run("exact", 0.49, MIXED, attacked=False, steps=12)


def test_peers_that_round_differently_in_float32_train_together_at_a_narrow_tolerance() -> None:
    ways = numerics_here()[0][:3]
    cohort = {peer: ways[peer % 3] for peer in range(6)}
    assert not mixed_run("tolerant", 0.05, cohort, attacked=False, steps=12)
    assert mixed_run("tolerant", 0.05, cohort, attacked=True, steps=60) == {3}
