"""A grid of small runs, which the tests of sweeps train or plan."""

from __future__ import annotations

from pathlib import Path

import yaml

from resnet.experiments.grid import Grid, parse_grid

SETTINGS = {
    "peers": 7,
    "byzantine": 2,
    "steps": 12,
    "eval_every": 4,
    "test_samples": 40,
    "batch_size": 4,
    "threads": 1,
    "checkpoint_every": 3,
    "model.width": 1,
    "data.name": "digits",
    "attack.start": 5,
}
DEFENCES = {"BTARD": {"aggregator.name": "btard"}, "Krum": {"aggregator.name": "krum"}}


def grid_of(attacks: dict, defences: dict | None = None, **entries) -> Grid:
    experiments = entries.pop("experiments", {"all": {}})
    content = {"settings": SETTINGS, "attacks": attacks, "defences": defences or DEFENCES, **entries}
    return parse_grid({**content, "experiments": experiments}, "a test")


def files(folder: Path) -> dict[str, bytes]:
    """Everything that a clock has no part in."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("timings.jsonl", ".lock")
    }


ATTACKS_OF_TWO = {"no attack": {}, "sign flip": {"attack.name": "sign_flip"}, "ALIE": {"attack.name": "alie"}}


def write_grid(file: Path, **entries) -> Path:
    content = {"settings": SETTINGS, "attacks": ATTACKS_OF_TWO, "defences": DEFENCES, "experiments": {"all": {}}}
    file.write_text(yaml.safe_dump({**content, **entries}))
    return file
