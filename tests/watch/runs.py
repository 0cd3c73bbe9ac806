"""Run folders for the tests: a real one, and ones made by hand of a swarm and of a hostile stranger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from btard.protocol.hashing import PROTOCOL_VERSION
from btard.protocol.ledger import Entry, Ledger
from resnet.training import train
from tests.resnet.trained import config_of

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u2028&lt;"
"""What a stranger may call a peer, a run or a claim."""


def real(folder: Path) -> Path:
    """Six peers, of whom two attack until they are found."""
    words = ["--byzantine=2", "--attack.name=sign_flip", "--attack.start=2", "--steps=24", "--protocol.heal=6"]
    train(config_of(*words), folder, progress=False, events=False)
    return folder


def by_hand(folder: Path, *, config: dict[str, Any], metrics: list[dict[str, Any]], entries: list[Entry]) -> Path:
    """A folder with these files."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    (folder / "protocol_version").write_text(f"{PROTOCOL_VERSION}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    ledger = Ledger()
    (folder / "ledger.jsonl").write_text("".join(ledger.append(entry) + "\n" for entry in entries))
    return folder


def swarm(folder: Path, word: str = "i-0123") -> Path:
    """A coordinator's folder of a swarm that went on from step 100; `word` is what a stranger calls everything."""
    metrics = [
        {"step": 100, "loss": 2.0, "active": 4, "roles": "wwwa", "bytes": {"part": 800, "commit": 100}},
        {"step": 101, "loss": 1.5, "active": 4, "roles": "wvww", "checks": [[1, 2]], "bytes": {"part": 800}},
        {"step": 102, "loss": 1.2, "active": 3, "roles": "vwww", "checks": [[0, 2]], "accused": [2]},
        {"step": 103, "loss": 1.1, "active": 3, "roles": "ww.w", word: word, "bytes": {word: 3}},
    ]
    votes = {"0": "guilty", "1": "guilty", "3": word, word: "guilty"}
    entries = [
        Entry(2, "wrong_gradient", "guilty", 2, (0,), (2,), 1, evidence=word, votes=votes),
        Entry(3, word, word, 1, (), (1,), 3),
    ]
    config = {"run_id": word, "peers": 4, "steps": 200, "start_from": "x", "network": {"host": word}}
    by_hand(folder, config={**config, "attack": {"name": word}}, metrics=metrics, entries=entries)
    peers = [
        {"peer": n, "instance": word, "state": word, "phase": word, "banned": word, "attacks": n == 2} for n in range(4)
    ]
    (folder / "status.json").write_text(json.dumps({"first": 100, "run_id": word, "peers": peers}))
    return folder
