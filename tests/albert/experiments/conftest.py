"""A series that was not run: what its swarms left is written here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from albert.experiments.grid import Cell, Grid, read_grid
from btard.harness.settings import config_text
from btard.swarm.local import COORDINATOR

GRID = """
title: A small series
base: base.yaml
settings: {{checkpoint_every: 10}}
attacks:
  sign flip: {{attack.name: sign_flip}}
  IPM: {{attack.name: ipm, attack.options: {{epsilon: 0.6}}}}
defences:
  BTARD: {{}}
  mean: {{protocol.tau: .inf, protocol.validators: 0}}
baseline: {baseline}
starts: {starts}
lead: 5
after: 20
seeds: {seeds}
"""

MakeGrid = Callable[..., Path]


@pytest.fixture
def make_grid(tmp_path: Path) -> MakeGrid:
    """Writes a grid and its base, with these instead of what stands there."""

    def make(*replaced: tuple[str, str], **values: Any) -> Path:
        (tmp_path / "base.yaml").write_text(
            "{run_id: small, peers: 5, byzantine: 2, steps: 9, data: {path: nowhere}, "
            "protocol: {tau: 0.125, heal: 'off'}}\n"
        )
        text = GRID.format(**{"baseline": "BTARD", "starts": [20, 40], "seeds": "{BTARD: [0, 1], mean: [0]}"} | values)
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        file = tmp_path / "grid.yaml"
        file.write_text(text)
        return file

    return make


@pytest.fixture
def grid(make_grid: MakeGrid) -> Grid:
    return read_grid(make_grid())


def write_swarm(cell: Cell, out: Path, *, honest: int | None = None) -> None:
    """What the coordinator of a finished swarm leaves: its attackers are banned 2 and 5 steps after their start.

    With the mean nobody is, and the loss goes up; `honest` is removed at the last step. It began at a checkpoint 10
    steps before the attack, if at any.
    """
    config = cell.config
    attackers = sorted(config.attackers())
    start, defended = config.attack.start, cell.defence == "BTARD"
    first = 0 if cell.start_by is None else start - 10
    if cell.start_by is not None:
        config = replace(config, start_from="/home/somebody/checkpoint")
    place = out / cell.name / COORDINATOR
    (place / "checkpoints").mkdir(parents=True)
    out_at = {peer: start + wait for peer, wait in zip(attackers, (2, 5), strict=False)} if defended else {}
    if honest is not None:
        out_at[honest] = config.steps - 1
    metrics, timings, ledger, bans = [], [], [], []
    for step in range(first, config.steps):
        for peer in (peer for peer, at in out_at.items() if at == step):
            kind = "silent" if peer == honest else "wrong_gradient"
            bans.append({"peer": peer, "step": step, "kind": kind, "accusers": [0]})
            votes = {"0": "guilty", "3": "guilty"}
            entry = {"accused": peer, "accusers": [0], "evidence": "ab" * 32, "kind": kind, "peers": [peer]}
            ledger.append({"step": step - first, **entry, "votes": votes})
        loss = 9 - step / 20 if defended or step < start else 9 + step
        active = config.peers - sum(at <= step for at in out_at.values())
        metrics.append({"step": step, "loss": loss, "active": active, "samples_per_second": 100.0 + step})
        timings.append({"step": step, "gradients": 0.2, "commit": 0.1, "accuse": 0.05})
        if (step + 1) % config.checkpoint_every == 0:
            metrics[-1] |= {"validation_loss": loss + 1, "masked_word_accuracy": step / 1000}
            (place / f"checkpoints/step-{step + 1:08d}.safetensors").write_bytes(b"")
    summary = {
        "steps": config.steps,
        "loss": metrics[-1]["loss"],
        "validation_loss": None,
        "byzantine": attackers,
        "byzantine_banned": len(attackers) if defended else 0,
        "honest_banned": int(honest is not None),
        "bans": bans,
        "heads": [],
    }
    for name, lines in (("metrics", metrics), ("timings", timings), ("ledger", ledger)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "config.yaml").write_text(config_text(config))
    (place / "summary.json").write_text(json.dumps(summary))
