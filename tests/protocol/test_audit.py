"""The audit of a ledger: every kind of ban is replayed, and whoever changed anything in the folder is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from btard.attacks import make_attack
from btard.audit import audit
from btard.drivers.local import LocalDriver
from btard.drivers.task import QuadraticTask
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.ledger import Ledger
from btard.protocol.proof import Recorder

D = 53


def record(
    folder: Path,
    behaviours: dict[int, Behaviour],
    *,
    peers: int = 8,
    steps: int = 8,
    collusion: Collusion | None = None,
    finish: bool = True,
    **settings: Any,
) -> LocalDriver:
    """A run of `behaviours` among honest peers, with all that it leaves in `folder`."""
    byzantine = sum(behaviour.byzantine for behaviour in behaviours.values())
    config = ProtocolConfig(**{"peers": peers, "byzantine": byzantine, "run_id": "audit", **settings})
    recorder = Recorder(folder, config)
    driver = LocalDriver(config, QuadraticTask(D), behaviours=behaviours, collusion=collusion, recorder=recorder)
    params, ledger, lines = torch.ones(D), Ledger(), []
    for _ in range(steps):
        result = driver.step(params)
        params = params - 0.1 * result.gradient
        lines += [ledger.append(entry) + "\n" for entry in result.removed]
    (folder / "ledger.jsonl").write_text("".join(lines))
    if finish:
        driver.attest(params)
    return driver


def attackers(name: str, *, count: int = 2, peers: int = 8, start: int = 2, **options: Any) -> dict[str, Any]:
    members = frozenset(range(1, 1 + count))
    collusion = Collusion(members, peers)
    behaviours = {i: make_attack(name, collusion, start=start, **options) for i in members}
    return {"behaviours": behaviours, "collusion": collusion, "peers": peers}


RUNS: list[tuple[str, dict[str, Any], set[str], dict[str, Any]]] = [
    ("sign_flip", {}, {"wrong_gradient"}, {"steps": 20}),
    ("misreport", {}, {"misreport"}, {}),
    ("wrong_aggregate", {"scale": 0.1}, {"wrong_aggregate"}, {}),
    ("colluding_aggregate", {"scale": 2.0}, {"wrong_gradient", "wrong_aggregate"}, {"steps": 20}),
    ("bad_part", {"send": "garbage"}, {"bad_part"}, {}),
    ("bad_part", {"send": "short", "recipients": "one"}, {"bad_part"}, {}),
    ("non_finite", {}, {"bad_part"}, {}),
    ("bad_aggregate", {}, {"bad_aggregate"}, {}),
    ("withheld_part", {}, {"withheld_part"}, {}),
    ("withheld_aggregate", {}, {"withheld_aggregate"}, {}),
    ("silent", {"phase": "reveal"}, {"silent"}, {}),
    ("silent", {"phase": "part"}, {"silent"}, {}),
    ("silent", {"phase": "commit"}, {"gone"}, {"steps": 12}),
    ("wrong_reveal", {}, {"wrong_reveal"}, {}),
    ("false_accusation", {"kind": "wrong_gradient"}, {"false_accusation"}, {}),
    ("false_accusation", {"kind": "misreport"}, {"false_accusation"}, {}),
    ("false_accusation", {"kind": "wrong_aggregate"}, {"false_accusation"}, {}),
]


@pytest.mark.parametrize("task", [False, True], ids=["votes", "task"])
@pytest.mark.parametrize(("attack", "options", "kinds", "more"), RUNS)
def test_every_kind_of_ban_is_audited(
    attack: str, options: dict[str, Any], kinds: set[str], more: dict[str, Any], task: bool, tmp_path: Path
) -> None:
    record(tmp_path, **attackers(attack, **options), **more)
    report = audit(tmp_path, QuadraticTask(D) if task else None)
    assert {finding.entry.kind for finding in report.findings} == kinds
    for finding in report.findings:
        assert ("votes only" in finding.checked) <= (not task)
        print(finding)
    print(report.summary)
