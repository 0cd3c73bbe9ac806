"""`btard.simulate`: attacks and rules of one's own, what a run leaves behind, and what is refused in one line."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import btard
from btard.audit import audit
from btard.export.__main__ import main as export
from tests.training import model

SMALL: dict[str, Any] = {"optimizer": model.adam, "steps": 6, "peers": 4, "validators": 1}


@dataclass(kw_only=True, eq=False)
class Zeros(btard.Attack):
    """Sends nothing."""

    name = "zeros"

    def gradient(self, ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(gradient)


class Unsaid(btard.Attack):
    def aggregate(self, ctx: Any, part: int, value: Any, x: Any) -> Any:
        return value + 1


class Said(Unsaid):
    level = "protocol"


class Lazy(btard.Behaviour):
    """The same by a behaviour that is no attack."""

    byzantine = True

    def active(self, step: int) -> bool:
        return True

    def gradient(self, ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(gradient)


@pytest.mark.parametrize("attack", ["zero", Zeros, lambda collusion: Lazy(), "label_flip"])
def test_attackers_by_name_class_and_function_are_banned_and_the_model_has_what_came_of_it(attack: Any) -> None:
    task = model.task()
    before = task.model[4].weight.clone()
    run = btard.simulate(task, **{**SMALL, "steps": 9}, byzantine=1, attack=attack)
    assert [(ban.peer, ban.reason, ban.attacker) for ban in run.bans] == [(*run.attackers, "wrong_gradient", True)]
    assert run.honest_banned == [] and run.active == tuple(sorted({0, 1, 2, 3} - run.attackers))
    assert len(run.losses) == len(run.lrs) == len(run.radii) == run.steps == 9
    assert not torch.equal(task.model[4].weight, before)
    assert task.model[1].num_batches_tracked > 0  # peer 0's running statistics


def test_training_twice_goes_on_where_it_was() -> None:
    task = model.task()
    optimizer = torch.optim.AdamW([x for x in task.model.parameters() if x.requires_grad], lr=0.02)
    seen: list[float] = []
    note = lambda run: seen.append(run.losses[-1])  # noqa: E731
    first = btard.simulate(task, **{**SMALL, "steps": 25, "optimizer": optimizer}, on_step=note)
    second = btard.simulate(task, **{**SMALL, "steps": 5, "optimizer": optimizer})
    assert seen == first.losses and sum(second.losses) / 5 < first.losses[0]
    assert optimizer.state[task.model[4].weight]["step"] == 30


def test_on_step_sees_the_model_as_it_is_then() -> None:
    task, weights = model.task(), []
    btard.simulate(task, **SMALL, on_step=lambda run: weights.append(task.model[4].weight.clone()))
    assert len(weights) == 6 and torch.equal(weights[-1], task.model[4].weight)
    assert not torch.equal(weights[0], weights[1])


def test_a_folder_has_what_an_audit_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    task = model.task()
    run = btard.simulate(task, **SMALL, byzantine=1, attack="zero", out=out, progress=True)
    said = capsys.readouterr().err.splitlines()
    assert any(line.endswith(f"banned {run.bans[0].peer}: wrong_gradient") for line in said)
    assert said[-1] == f"step 6 of 6: loss {run.losses[-1]:.4g}, 3 peers"
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == run.losses and lines[-1]["active"] == 3
    summary = json.loads((out / "summary.json").read_text())
    assert summary.pop("files").keys() > {"ledger.jsonl", "attestation.json", "final.safetensors"}
    assert summary == run.summary()
    report = audit(out)
    assert len(report.findings) == len(run.ledger)
    assert "attested by 3 of 3 active peers" in report.summary
    exported = tmp_path / "model"
    assert export([str(out), "--out", str(exported)]) == 0 and export(["--check", str(exported)]) == 0
    named, own = load_file(exported / "model.safetensors"), task.model.state_dict()
    assert named.keys() == own.keys() and all(torch.equal(x, own[name]) for name, x in named.items())
    assert f"peer {run.bans[0].peer} (wrong\\_gradient, step" in (exported / "README.md").read_text()
    with pytest.raises(ValueError, match="holds a run with byzantine '1', this one has '0': give another folder"):
        btard.simulate(model.task(), **SMALL, out=out)


def test_a_rule_at_a_trusted_server_bans_nobody() -> None:
    runs = [
        btard.simulate(model.task(), **SMALL, byzantine=1, attack="sign_flip", rule=rule)
        for rule in ("coordinate_median", lambda rows: rows.median(0).values)
    ]
    assert all(run.bans == [] and run.radii == [None] * 6 for run in runs)
    assert all(math.isfinite(loss) for run in runs for loss in run.losses)


def test_a_training_that_diverges_ends_early_with_a_warning() -> None:
    task = model.task()
    sgd = lambda p: torch.optim.SGD(p, lr=1e30)  # noqa: E731
    with pytest.warns(UserWarning, match="or the training has diverged; the run ends here"):
        run = btard.simulate(task, **{**SMALL, "optimizer": sgd}, heal="off")
    assert run.diverged_at is not None and run.steps == len(run.lrs) == run.diverged_at < 6
    assert "diverged at step" in repr(run)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"attack": "sign_flip"}, ValueError, "the attack needs attackers: byzantine must be > 0, got 0"),
        ({"attack": "sign_flop", "byzantine": 1}, ValueError, "unknown attack 'sign_flop', did you mean 'sign_flip'"),
        ({"attack": "zero", "byzantine": 2}, ValueError, "byzantine must be < peers / 2 = 2, got 2"),
        ({"attack": 3, "byzantine": 1}, TypeError, "attack must be a name, a class that extends .*, got int$"),
        ({"attack": dict, "byzantine": 1}, TypeError, "attack must be a name, a class .*, got the class dict$"),
        ({"attack": lambda shared: None, "byzantine": 1}, TypeError, "made NoneType$"),
        ({"attack": lambda shared: Said, "byzantine": 1}, TypeError, "made the class Said$"),
        (
            {"attack": btard.ATTACKS["zero"], "byzantine": 1, "attack_options": {"scale": 2.0}},
            TypeError,
            "the attack Zero cannot be made: .*'scale'; it has the options start, every, stop, when$",
        ),
        ({"attack_options": {"scale": 2.0}}, TypeError, "attack_options are for an attack, got 'scale' without one"),
        ({"attack_options": 3}, TypeError, "attack_options must be a dictionary of options by name or None, got int 3"),
        ({"steps": -1}, ValueError, "steps must be a whole number >= 0, got -1$"),
        ({"steps": 2.5}, ValueError, "steps must be a whole number >= 0, got 2.5$"),
        ({"peers": "4"}, ValueError, "peers must be a whole number >= 1, got '4'$"),
        ({"byzantine": None}, ValueError, "byzantine must be a whole number >= 0, got None$"),
        ({"seed": None}, ValueError, "seed must be a whole number, got None$"),
        ({"run_id": 3}, TypeError, "run_id must be a text or None, got int 3$"),
        ({"out": 3}, TypeError, "out must be the path of a folder or None, got int 3$"),
        ({"on_step": 3}, TypeError, "on_step must be a function of the run or None, got int 3$"),
        ({"validators": "2"}, TypeError, "a setting of the protocol has a value of a wrong type: .*validators='2'"),
        ({"rule": 3}, TypeError, r"rule must be a name, a btard.Rule .*, got int$"),
        ({"rule": dict}, TypeError, r"rule must be a name, a btard.Rule .*, got the class dict$"),
        (
            {"rule_options": {"share": 1}},
            TypeError,
            "rule_options are for a rule, got 'share' without one",
        ),
        ({"rule": "mean", "rule_options": [1]}, TypeError, "rule_options must be a dictionary .*, got list$"),
        (
            {"attack": "zero", "byzantine": 1, "attack_options": {"scale": 2.0}},
            ValueError,
            "attack zero has no option 'scale'",
        ),
        ({"validator": 1}, TypeError, "unknown argument 'validator'; settings of the protocol are clip_lambda"),
        ({"peers": 100}, ValueError, "the model has 34 trained parameters, fewer than the 100 peers"),
        ({"rule": "median"}, ValueError, "unknown rule 'median'; there are mean, coordinate_median"),
        ({"rule": "centered_clip"}, ValueError, "centered_clip needs a clipping radius"),
        (
            {"rule": "mean", "attack": "equivocate", "byzantine": 1},
            ValueError,
            "the attack equivocate is on the protocol, which a rule at a server does not run",
        ),
        (
            {"rule": "mean", "attack": Unsaid, "byzantine": 1},
            ValueError,
            "the attack Unsaid overrides aggregate, a hook of the protocol",
        ),
        (
            {"rule": "mean", "attack": Said, "byzantine": 1},
            ValueError,
            "the attack Said is on the protocol, which a rule at a server does not run",
        ),
        (
            {"task": btard.QuadraticTask(50), "attack": "zero", "byzantine": 1},
            TypeError,
            "task must be a btard.TorchTask, got QuadraticTask",
        ),
    ],
)
def test_what_cannot_work_is_said_in_one_line(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    task = arguments.pop("task", None) or model.task()
    with pytest.raises(error, match=message) as raised:
        btard.simulate(task, **{**SMALL, **arguments})
    assert "\n" not in str(raised.value)


def test_label_flipping_wants_to_know_how() -> None:
    with pytest.raises(ValueError, match="the attack flips labels: give TorchTask poison="):
        btard.simulate(model.task(poison=None), **SMALL, byzantine=1, attack="label_flip")
