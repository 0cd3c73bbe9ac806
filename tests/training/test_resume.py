"""Killed and started again: the same bits, the same folder; a folder of another run is refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import btard
from btard.audit import audit
from btard.drivers.mesh import Mesh
from btard.export.__main__ import main as export
from btard.protocol.hashing import tensor_digest
from btard.training.ranks import _compare
from btard.training.vector import flatten
from tests.drivers.test_mesh import in_ranks
from tests.training import model
from tests.training.model import ATTACK, EQUAL, WITH, head

KEPT = ("metrics.jsonl", "ledger.jsonl", "summary.json", "final.safetensors", "attestation.json", "model.json")


class Killed(Exception):
    pass


def killer(step: int) -> Callable[[btard.Run], None]:
    """An `on_step` that raises after so many steps."""

    def on_step(run: btard.Run) -> None:
        if run.steps == step:
            raise Killed

    return on_step


def simulated(out: Path, **changes: Any) -> tuple[Any, ...]:
    task = model.task()
    run = btard.simulate(task, out=out, **{"peers": model.PEERS, "checkpoint_every": 3, **WITH, **EQUAL, **changes})
    buffers = [x.clone() for name, x in task.model.named_buffers()]
    digests = [tensor_digest(x) for x in (flatten(task.model), *buffers)]
    return digests, head(run), run.losses, run.lrs, run.bans, run.returns, run.radii, run.active


def files(out: Path) -> dict[str, bytes]:
    return {str(f.relative_to(out)): f.read_bytes() for f in [*(out / n for n in KEPT), *(out / "evidence").iterdir()]}


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = simulated(tmp_path / "whole")
    assert whole[4] and whole[5], "choose a run with a ban and a return"
    for step in (2, 5, 10):  # before the first checkpoint, between two, and right after a ban
        with pytest.raises(Killed):
            simulated(tmp_path / "killed", on_step=killer(step))
    for name in ("metrics.jsonl", "ledger.jsonl"):
        (tmp_path / "killed" / name).unlink()  # put back from the checkpoint
    assert simulated(tmp_path / "killed") == whole
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    audit(tmp_path / "killed")
    asked: list[int] = []
    assert simulated(tmp_path / "killed", on_step=lambda run: asked.append(run.steps)) == whole and not asked


def test_a_loss_or_layer_that_changed_is_refused_and_so_are_fewer_steps(begun: Path, tmp_path: Path) -> None:
    """Neither has a name that could be compared: what the gradient on trial has for a loss tells them."""
    task = model.task()
    task.loss_function = lambda module, batch: 2 * torch.nn.functional.cross_entropy(module(batch[0]), batch[1])
    with pytest.raises(ValueError, match=r"holds a run with loss at the start '\S+', this one has '\S+': give another"):
        btard.simulate(task, peers=model.PEERS, out=begun, **WITH, **EQUAL)
    simulated(tmp_path / "long", steps=4)
    with pytest.raises(ValueError, match=r"holds 4 steps of this run, and steps=3 asks for fewer: give at least as"):
        simulated(tmp_path / "long", steps=3)


def test_a_rule_that_was_made_with_another_number_is_refused(tmp_path: Path) -> None:
    simulated(tmp_path, steps=2, rule=btard.make_rule("trimmed_mean", byzantine=1))
    simulated(tmp_path, steps=3, rule=btard.make_rule("trimmed_mean", byzantine=1))
    with pytest.raises(ValueError, match=r"rule_options.byzantine '1', this one has '0'"):
        simulated(tmp_path, steps=3, rule=btard.make_rule("trimmed_mean"))


def test_what_a_checkpoint_cannot_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"driver/collusion/count cannot be kept in a checkpoint, .* got int 1: have t"):
        simulated(tmp_path, steps=3, attack=Counting, attack_options=None)


class Counting(btard.Attack):
    def gradient(self, ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        self.collusion.memory["count"] = 1  # type: ignore[assignment]
        return -gradient


def test_a_run_goes_on_with_more_steps_and_with_a_damaged_checkpoint(tmp_path: Path) -> None:
    whole = simulated(tmp_path / "whole")
    simulated(tmp_path / "longer", steps=8)
    newest = tmp_path / "longer/checkpoints/step-00000008.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"step-00000008.safetensors: damaged, it is not used"):
        assert simulated(tmp_path / "longer") == whole
    assert files(tmp_path / "longer") == files(tmp_path / "whole")


def test_a_server_rule_goes_on_too(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rule": "coordinate_median", "steps": 6}
    whole = simulated(tmp_path / "whole", **changes)
    with pytest.raises(Killed):
        simulated(tmp_path / "killed", on_step=killer(4), **changes)
    assert simulated(tmp_path / "killed", **changes) == whole


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 2}, "holds a run with seed '1', this one has '2': give another folder"),
        ({"tau": 5.0}, "holds a run with tau '100.0', this one has '5.0'"),
        ({"tau": "auto"}, "holds a run with tau '100.0', this one has 'auto'"),
        ({"attack_options": {"start": 3, "scale": 2.0}}, "holds a run with attack_options.scale '100.0'"),
        (
            {"attack": None, "attack_options": None},
            "holds a run with attack 'tests.training.model:Backwards', this one has 'None'",
        ),
        ({"attack_options": {"start": 3}}, "holds a run with attack_options.scale '100.0', this one has None"),
        ({"attack_options": {**ATTACK["attack_options"], "every": 2}}, "attack_options.every None, this one has '2'"),
        ({"peers": 5}, "holds a run with peers '4'"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=0.1)}, "holds a run with optimizer 'AdamW"),
        ({"rule": "mean"}, "holds a run with rule 'None', this one has 'mean'"),
        ({"checkpoint_every": 0}, "checkpoint_every must be a whole number >= 1, got 0"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_a_folder_of_another_run_is_refused(changes: dict[str, Any], said: str, begun: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        simulated(begun, **changes)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(Killed):
        simulated(out, on_step=killer(1))
    return out


def test_another_model_or_a_folder_without_its_settings_is_refused(begun: Path, tmp_path: Path) -> None:
    task = model.task()
    with torch.no_grad():
        task.model[4].weight += 1
    with pytest.raises(ValueError, match=r"first parameters .* with torch.manual_seed before the model is made"):
        btard.simulate(task, peers=model.PEERS, out=begun, **WITH, **EQUAL)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds another run already: give another folder, or remove it"):
        simulated(tmp_path)
    with pytest.raises(ValueError, match=r"run\.json is a file: out must be a folder that is new or holds this run"):
        simulated(begun / "run.json")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: damaged"):
        simulated(tmp_path)


def test_ranks_compare_what_either_was_told() -> None:
    """An option that only one of them has is a difference, whichever it is."""
    for one, other in (({"a": "1"}, {}), ({}, {"a": "1"}), ({"a": "1"}, {"a": "2"})):
        mesh = SimpleNamespace(gather=lambda name, mine, said=(one, other): dict(enumerate(map(compared, said))))
        with pytest.raises(ValueError, match="ranks 0 and 1 differ in a: make the same task"):
            _compare(cast(Mesh, mesh), None, one)


def compared(made: dict[str, str]) -> bytes:
    return json.dumps(["", made]).encode()


def test_ranks_that_were_killed_go_on_to_the_same_bits(tmp_path: Path) -> None:
    def started(out: Path, at: int | None = None) -> list[Any]:
        def work(mesh: Mesh) -> tuple[Any, ...]:
            task = model.task()
            on_step = None if at is None else killer(at)
            run = btard.distributed(task, mesh=mesh, out=out, checkpoint_every=3, on_step=on_step, **WITH, **EQUAL)
            return tensor_digest(flatten(task.model)), head(run), run.losses, run.bans, run.fallen is None, run.leads

        return in_ranks(work, model.PEERS, timeout=60)

    whole = started(tmp_path / "whole")
    [attacker] = {ban.peer for ban in whole[0][3]}
    assert not whole[attacker][4]
    banned = whole[0][3][0].step
    for step in (2, banned + 4):  # at the second time the attacker is out, and there is a checkpoint without it
        ends = started(tmp_path / "killed", step)
        assert all(isinstance(end, Killed) for rank, end in enumerate(ends) if rank != attacker)
    assert export([str(tmp_path / "killed"), "--out", str(tmp_path / "home")]) == 0
    assert "steps, of a run that had not finished" in (tmp_path / "home/README.md").read_text()
    again = started(tmp_path / "killed")
    assert [end for rank, end in enumerate(again) if rank != attacker] == [
        end for rank, end in enumerate(whole) if rank != attacker
    ]
    assert not again[attacker][4] and not again[attacker][5]
    assert files(tmp_path / "killed").keys() == files(tmp_path / "whole").keys()
    for name in ("metrics.jsonl", "ledger.jsonl", "attestation.json", "final.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert json.loads((tmp_path / "killed/summary.json").read_text())["bans"]
    audit(tmp_path / "killed")
