"""A recorded run, and copies of it to spoil."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from btard.attacks import make_attack
from btard.audit import audit
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.task import QuadraticTask
from tests.audit.runs import D, record


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with bans in at least three steps, by evidence, by broadcasts and by a gradient."""
    folder = tmp_path_factory.mktemp("audit") / "run"
    folder.mkdir()
    members = frozenset({1, 2, 3})
    collusion = Collusion(members, 9)
    names = {1: ("misreport", 2), 2: ("wrong_reveal", 5), 3: ("sign_flip", 1)}
    behaviours: dict[int, Behaviour] = {
        i: make_attack(name, collusion, start=start) for i, (name, start) in names.items()
    }
    record(folder, behaviours, collusion=collusion, peers=9, steps=24, run_id="tampered", tau=1.0)
    lines = (folder / "ledger.jsonl").read_text().splitlines()
    assert len({json.loads(line)["step"] for line in lines}) == len(lines) == 3
    audit(folder, QuadraticTask(D))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))
