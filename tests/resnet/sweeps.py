"""Sweeps whose run folders are written here, so that what reports say of them follows by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from btard.harness.settings import config_text
from resnet.experiments import tables
from resnet.experiments.grid import Cell, Grid, parse_grid
from resnet.experiments.outcomes import Outcome, Results, read_results
from resnet.report import main

SETTINGS = {
    "peers": 16,
    "byzantine": 7,
    "steps": 40,
    "eval_every": 5,
    "attack.start": 10,
    "protocol.tau": 1,
    "protocol.heal": "off",
    "data.name": "folder",
    "data.path": "/home/somebody/pictures.tar",
    "data.label": "pictures",
}
ATTACKS = {"no attack": {}, "sign flip": {"attack.name": "sign_flip"}, "ALIE": {"attack.name": "alie"}}
DEFENCES = {
    "BTARD, tau 1": {"protocol.tau": 1},
    "BTARD, tau 10": {"protocol.tau": 10},
    "mean": {"aggregator.name": "mean"},
    "Krum": {"aggregator.name": "krum"},
}
BTARD = ["BTARD, tau 1", "BTARD, tau 10"]
STEPS = range(5, 41, 5)

BAN_STEPS = (1, 2, 2, 5, 8, 13, 21)
"""When the seven attackers of a run are banned, in steps after the start."""


def make_grid(**entries: Any) -> Grid:
    content = {"settings": SETTINGS, "attacks": ATTACKS, "defences": DEFENCES, "title": "A test", **entries}
    return parse_grid(content, "a test")


def early(**entry: Any) -> dict[str, Any]:
    return {"early": {"title": "Early attacks", "defences": BTARD, "seeds": [0, 1], **entry}}


def rising(step: int) -> float:
    return step / 100


def ban(peer: int, step: int, *, byzantine: bool = True, kind: str = "wrong_gradient") -> dict[str, Any]:
    return {"peer": peer, "step": step, "kind": kind, "accuser": 0, "byzantine": byzantine}


def attackers_go(cell: Cell, after: tuple[int, ...] = BAN_STEPS) -> list[dict[str, Any]]:
    """Every attacker of a BTARD run is banned `after` so many steps of its attack."""
    config = cell.config
    if config.attack.name is None or config.aggregator.name != "btard":
        return []
    peers = sorted(config.attackers())
    return [ban(peer, config.attack.start + step) for peer, step in zip(peers, after, strict=False)]


def finish(
    out: Path,
    cell: Cell,
    accuracy: Callable[[int], float] = rising,
    bans: list[dict[str, Any]] | None = None,
    **summary: Any,
) -> Path:
    """Write the folder of a finished run; `accuracy` of the steps done. By default all attackers are banned."""
    config, folder = cell.config, out / "runs" / cell.name
    metrics, timings = [], []
    for done in range(1, config.steps + 1):
        measured = done % config.eval_every == 0 or done == config.steps
        line = {"test_accuracy": accuracy(done), "test_loss": 2.0} if measured else {}
        metrics.append({"step": done - 1, "loss": 1.0, "lr": 0.1, "active": 16, **line})
        timings.append({"step": done - 1, "gradients": 0.06, "report": 0.02})
    bans = attackers_go(cell) if bans is None else bans
    content = {
        "test_accuracy": accuracy(config.steps),
        "bans": bans,
        "byzantine": sorted(config.attackers()),
        "diverged_at": None,
        "data": config.data.label,
        "parameters": 123,
        "device": "cpu",
        "versions": {"torch": "2.9.9", "python": "3.10.1"},
    }
    files = {
        "config.yaml": config_text(config),
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in metrics),
        "timings.jsonl": "".join(json.dumps(line) + "\n" for line in timings),
        "ledger.jsonl": '{"step": 11}\n',
        "summary.json": json.dumps(content | summary, indent=2),
    }
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def write_sweep(out: Path, grid: Grid, but: str = " ") -> Path:
    """A sweep all of whose runs are finished, except those with `but` in their name."""
    out.mkdir()
    (out / "sweep.yaml").write_text(grid.text)
    for cell in grid.cells:
        if but not in cell.name:
            lost = 0.02 * (cell.config.attack.name is not None) + 0.01 * cell.seed
            finish(out, cell, lambda step, lost=lost: rising(step) - lost)
    return out


def read(out: Path, grid: Grid) -> Results:
    return read_results(out, grid)


def outcome_of(tmp_path: Path, curve: list[float], **summary: Any) -> Outcome:
    """An attacked run with accuracies `curve` at `STEPS`, beside one without attack that has 5 %, 10 %, ... 40 %."""
    grid = make_grid(experiments={"e": {"attacks": ["no attack", "sign flip"], "defences": ["BTARD, tau 1"]}})
    quiet, attacked = grid.cells
    finish(tmp_path, quiet)
    finish(tmp_path, attacked, lambda step: dict(zip(STEPS, curve, strict=True))[step], **summary)
    return read(tmp_path, grid).outcomes[attacked.name]


def by_name(table: tables.Table) -> list[dict[str, str]]:
    return [dict(zip(table[0], row, strict=True)) for row in table[1:]]


def line(axes, label: str):
    (found,) = [entry for entry in axes.get_lines() if entry.get_label() == label]
    return found


def report(out: Path, where: Path, *words: str) -> dict[str, bytes]:
    """The files of a report, but for those of trackers."""
    assert main([str(out), "--out", str(where), *words]) == 0
    return {file.name: file.read_bytes() for file in where.iterdir() if file.is_file()}
