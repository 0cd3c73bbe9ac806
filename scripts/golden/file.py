"""The golden file in the repository: for each run, what no CPU and no version of torch changes.

Coins, effects and bytes, as digests and sums; entries of the ledger as kinds and peers. `tests/golden/record.json` has
a line for each run, so that a change of it can be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from blake3 import blake3

from scripts.golden.compare import ROOT
from scripts.golden.differences import Key, Record

FILE = ROOT / "tests/golden/record.json"
SECTIONS = ("matrix", "soak", "variants")
"""Runs of small cohorts on a quadratic. The others train networks, whose sums round differently on different CPUs."""
SEEDS = 3


def portable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the golden file keeps of a run's fields."""
    if "error" in fields:
        return dict(fields)
    return {
        "steps": fields["steps"],
        "entries": [_told(entry) for entry in fields["entries"]],
        "coins": _digest(fields["coins"]),
        "sent": {peer: sum(steps) for peer, steps in fields["sent"].items()},
        "effects": _digest(fields["effects"]),
    }


def read(sections: Iterable[str], seeds: int, match: str) -> Record:
    """The runs of the file that are in `sections`, have a seed below `seeds` if of the matrix, and hold `match`."""
    kept = {(section, name, seed): fields for section, name, seed, fields in json.loads(FILE.read_text("utf-8"))}

    def wanted(key: Key) -> bool:
        section, name, seed = key
        return section in sections and match in name and (section != "matrix" or seed < seeds)

    return {key: fields for key, fields in kept.items() if wanted(key)}


def write(record: Record) -> None:
    """Write the file again."""
    lines = [json.dumps([*key, fields], separators=(",", ":")) for key, fields in record.items()]
    FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def _told(entry: Mapping[str, Any]) -> str:
    peers, accusers = (" ".join(map(str, entry[who])) or "-" for who in ("peers", "accusers"))
    about = f"step {entry['about_step']} part {entry['part']}"
    return f"step {entry['step']}: {entry['kind']} {entry['verdict']}, {about}, out: {peers}, by: {accusers}"


def _digest(value: Any) -> str:
    return blake3(json.dumps(value).encode()).hexdigest(length=8)
