"""`python -m btard.export` of a simulated run: the network that was evaluated, tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from btard.checkpoints import Checkpoints
from btard.export.__main__ import main as export
from resnet.data import load_dataset
from resnet.model import evaluate, resnet18
from resnet.training import train
from tests.resnet.trained import ATTACK, config_of


def test_what_is_exported_is_the_network_that_was_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "model"
    config = config_of(*ATTACK)
    summary = train(config, run, progress=False)
    assert export([str(run), "--out", str(out)]) == 0
    data = load_dataset("digits")
    model = resnet18(config.model.width, data.classes, data.channels, seed=1)
    model.load_state_dict(load_file(out / "model.safetensors"))  # strict: every parameter and every statistic
    accuracy, _ = evaluate(model, *data.test_tensors())
    assert accuracy == summary["test_accuracy"]
    card = (out / "README.md").read_text()
    assert data.digest in card and "statistics are those of peer 0" in card
    for ban in summary["bans"]:
        assert f"peer {ban['peer']} (wrong\\_gradient, step {ban['step']})" in card
    assert export(["--check", str(out)]) == 0

    # Another ledger than the one that was signed: the last ban is left out.
    ledger = out / "proof/ledger.jsonl"
    ledger.write_text("".join(line + "\n" for line in ledger.read_text().splitlines()[:-1]))
    with pytest.raises(SystemExit, match="2"):
        export(["--check", str(out)])
    assert "its ledger are not what the peers signed" in capsys.readouterr().err


def test_a_run_that_is_unsigned_or_unfinished_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "model"
    config = config_of("--aggregator.name", "mean")
    with pytest.raises(SystemExit, match="2"):
        export([str(run), "--out", str(out)])
    train(config, run, progress=False, until=5)
    assert export([str(run), "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "5 steps, of a run that had not finished" in card and "| signed by | nobody |" in card
    with pytest.raises(SystemExit, match="2"):
        export(["--check", str(out)])
    assert "nobody signed it" in capsys.readouterr().err

    for file in Checkpoints(run / "checkpoints").files():
        save_file({}, file, {"btard": "{}"})
    with pytest.raises(SystemExit, match="2"):
        export([str(run), "--out", str(tmp_path / "none")])
    assert "found none that is intact" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["tensors"][0].update(offset=10**9), "is named by nobody"),
        (
            lambda content: content["tensors"].append({**content["tensors"][0], "name": "x", "source": "nothing"}),
            "which the checkpoint does not have",
        ),
        (lambda content: content["tensors"][0].update(stride=[1]), "damaged"),
        (lambda content: content["tensors"][0].update(dtype="save"), "which is no type of a tensor in safetensors"),
        (lambda content: content.pop("tensors"), "damaged"),
    ],
)
def test_a_broken_model_file_is_one_line(
    change: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(config_of("--aggregator.name", "mean", "--steps", "1"), run, progress=False)
    content = json.loads((run / "model.json").read_text())
    change(content)  # type: ignore[operator]
    (run / "model.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="2"):
        export([str(run), "--out", str(tmp_path / "model")])
    assert "model.json: is not the one that summary.json was made of" in capsys.readouterr().err
    (run / "summary.json").unlink()
    with pytest.raises(SystemExit, match="2"):
        export([str(run), "--out", str(tmp_path / "model")])
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
