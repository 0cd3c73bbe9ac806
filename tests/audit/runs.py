"""Recorded runs, and what a forger does to their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from btard.attacks import make_attack
from btard.audit.files import write_json
from btard.audit.proof import proof_digest
from btard.audit.recorder import Recorder
from btard.drivers.links import Links
from btard.drivers.local import LocalDriver
from btard.protocol.behaviour import Behaviour
from btard.protocol.collusion import Collusion
from btard.protocol.config import ProtocolConfig
from btard.protocol.identity import Identity
from btard.protocol.ledger import Entry, Ledger
from btard.task import QuadraticTask

D, START = 53, 2


def record(
    folder: Path,
    behaviours: dict[int, Behaviour],
    *,
    peers: int = 8,
    steps: int = 8,
    collusion: Collusion | None = None,
    links: Links | None = None,
    finish: bool = True,
    between: Callable[[LocalDriver, int], None] = lambda driver, step: None,
    d: int = D,
    **settings: Any,
) -> LocalDriver:
    """A run of `behaviours` among honest peers, with all that it leaves in `folder`."""
    byzantine = sum(behaviour.byzantine for behaviour in behaviours.values())
    config = ProtocolConfig(**{"peers": peers, "byzantine": byzantine, "run_id": "audit", "tau": 1.0, **settings})
    recorder = Recorder(folder, config)
    driver = LocalDriver(
        config, QuadraticTask(d), behaviours=behaviours, collusion=collusion, links=links, recorder=recorder
    )
    params, ledger, lines = torch.ones(d), Ledger(), []
    for step in range(steps):
        between(driver, step)
        result = driver.step(params)
        params = params - 0.1 * result.gradient if result.back_to is None else result.state["parameters"].clone()
        lines += [ledger.append(entry) + "\n" for entry in result.removed]
    (folder / "ledger.jsonl").write_text("".join(lines))
    if finish:
        driver.attest(params)
    return driver


def attackers(name: str, *, count: int = 2, peers: int = 8, start: int = START, **options: Any) -> dict[str, Any]:
    members = frozenset(range(1, 1 + count))
    collusion = Collusion(members, peers)
    behaviours = {i: make_attack(name, collusion, start=start, **options) for i in members}
    return {"behaviours": behaviours, "collusion": collusion, "peers": peers}


def lines_of(folder: Path) -> list[str]:
    return (folder / "ledger.jsonl").read_text().splitlines()


def write_lines(folder: Path, lines: Sequence[str], *, chained: bool) -> None:
    """Write the ledger; `chained`: with heads that fit, as a forger would."""
    if chained:
        ledger = Ledger()
        lines = [ledger.append(Entry.from_json(line)) for line in lines]
    (folder / "ledger.jsonl").write_text("".join(line + "\n" for line in lines))


def sign(file: Path, content: dict[str, Any], run_id: str = "tampered", by: int = 0) -> None:
    """Write a proof as a hostile member can, who has a key."""
    content = {**content, "by": by}
    content.pop("signature", None)
    signature = Identity.from_seed(run_id, by).sign(proof_digest(content))
    write_json(file, {**content, "signature": signature.hex()})
