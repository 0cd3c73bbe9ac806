"""The audit of a run that went back to an earlier state: which one follows from the messages, and from the states."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from btard.attacks import make_attack
from btard.audit import AuditError, audit
from btard.audit.report import MEASURED, MESSAGES, UNMEASURED, NotReproduced
from btard.audit.states import read_state, write_state
from btard.drivers.links import Links
from btard.protocol.collusion import Collusion
from btard.protocol.heal import HEALED
from btard.protocol.ledger import Entry
from btard.protocol.wire import Malformed
from btard.task import QuadraticTask
from tests.audit.runs import D, attackers, lines_of, record, write_lines


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("healed")
    record(folder, **attackers("sign_flip"), steps=14, heal="auto", tau=100.0, byzantine=2)
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copy")


def healings(folder: Path) -> list[Entry]:
    return [entry for line in lines_of(folder) if (entry := Entry.from_json(line)).kind == HEALED]


def checked(folder: Path, task: QuadraticTask | None = None) -> list[str]:
    return [finding.checked for finding in audit(folder, task).findings if finding.entry.kind == HEALED]


def test_the_choice_is_replayed_and_with_the_task_made_again(run: Path) -> None:
    assert any(entry.about_step < entry.step for entry in healings(run))
    assert checked(run) == [MESSAGES] * len(healings(run))
    assert checked(run, QuadraticTask(D)) == [MEASURED] * len(healings(run))


def test_a_task_that_cannot_compare_states_is_said_to_fail(run: Path) -> None:
    class Failing(QuadraticTask):
        def public_losses(self, params: torch.Tensor, seed: bytes) -> torch.Tensor:
            raise RuntimeError("no such data here")

    with pytest.raises(NotReproduced, match=r"step \d+: the task fails: RuntimeError: no such data here"):
        audit(run, Failing(D))


def test_a_state_of_any_size_is_not_read(tmp_path: Path) -> None:
    write_state(tmp_path, {"parameters": torch.zeros(5)})
    (file,) = tmp_path.iterdir()
    os.truncate(file, 2**21)
    with pytest.raises(Malformed, match="too long for 5 parameters"):
        read_state(tmp_path, bytes.fromhex(file.stem.removeprefix("state-")), 5)


def test_its_line_says_what_happened(run: Path) -> None:
    first = next(entry for entry in healings(run) if entry.about_step < entry.step)
    lines = [str(finding) for finding in audit(run).findings]
    assert any(line.startswith(f"step {first.step}: back to step {first.about_step}, loss ") for line in lines)


def changed(line: str, **fields: object) -> str:
    return json.dumps({**json.loads(line), **fields})


@pytest.mark.parametrize(
    "forge",
    [
        lambda line: changed(line, about_step=json.loads(line)["step"]),
        lambda line: changed(line, about_step=json.loads(line)["about_step"] + 1),
        lambda line: changed(line, losses={}),
        lambda line: changed(line, evidence="00" * 32),
        lambda line: None,
    ],
    ids=["stayed", "went elsewhere", "other losses", "another state", "no line"],
)
@pytest.mark.parametrize("which", ["last", "first"])
def test_another_choice_in_the_ledger_is_refused(copy: Path, forge: Callable[[str], str | None], which: str) -> None:
    lines = lines_of(copy)
    of_this_kind = [i for i, line in enumerate(lines) if json.loads(line)["kind"] == HEALED]
    number = of_this_kind[0 if which == "first" else -1]
    forged = forge(lines[number])
    write_lines(copy, [*lines[:number], *([] if forged is None else [forged]), *lines[number + 1 :]], chained=True)
    with pytest.raises(AuditError):
        audit(copy)


def test_states_that_were_measured_otherwise_are_refused(run: Path) -> None:
    """What a majority of liars would come to: the messages fit the ledger, and not the states."""

    class Other(QuadraticTask):
        def public_losses(self, params: torch.Tensor, seed: bytes) -> torch.Tensor:
            return -super().public_losses(params, seed)

    with pytest.raises(AuditError, match=r"step-0+\d+.json: by the states in evidence the run goes on from step"):
        audit(run, Other(D))


def test_a_state_that_is_not_there_is_said(copy: Path) -> None:
    for file in (copy / "evidence").glob("state-*"):
        file.unlink()
    assert checked(copy, QuadraticTask(D)) == [UNMEASURED] * len(healings(copy))


def test_a_changed_state_is_refused(copy: Path) -> None:
    first = healings(copy)[0]
    file = next((copy / "evidence").glob(f"state-{first.evidence}*"))
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(AuditError, match="its content does not match its digest"):
        audit(copy, QuadraticTask(D))
    file.write_bytes(b"garbage")
    with pytest.raises(AuditError, match=file.name[:20]):
        audit(copy, QuadraticTask(D))


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    tensors = {"parameters": torch.arange(5.0), "momentum": torch.ones(5)}
    write_state(tmp_path, tensors)
    (file,) = tmp_path.iterdir()
    hashed = bytes.fromhex(file.stem.removeprefix("state-"))
    found = read_state(tmp_path, hashed, 5)
    assert found is not None and torch.equal(found, tensors["parameters"])
    assert read_state(tmp_path, bytes(32), 5) is None
    with pytest.raises(Malformed, match="expected 4 float32 parameters"):
        read_state(tmp_path, hashed, 4)


def test_a_step_in_which_nobody_had_a_gradient_and_that_went_back_is_replayed(tmp_path: Path) -> None:
    """Alone, and as the step before a removal: without the ledger it would be one that ended the run."""

    class Slow(Links):
        def late(self, step: int, peer: int) -> bool:
            return step == 3

    collusion = Collusion(frozenset({1, 2}), 8)
    silent = {
        peer: make_attack("silent", collusion, start=start, phase="part", onwards=True)
        for peer, start in ((1, 2), (2, 4))
    }
    record(tmp_path, silent, collusion=collusion, links=Slow(), heal=4)
    assert [entry.step for entry in healings(tmp_path)] == [3, 5]
    assert checked(tmp_path) == [MESSAGES] * 2
