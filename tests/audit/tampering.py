"""What the tests of spoilt folders share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from btard.audit import AuditError, audit
from btard.protocol.ledger import Entry
from btard.task import QuadraticTask
from tests.audit.runs import lines_of


def refused(folder: Path, reason: str, task: QuadraticTask | None = None) -> None:
    with pytest.raises(AuditError, match=reason):
        audit(folder, task)


def proof_of(folder: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """The proof of the step in which somebody was banned for `kind`: its file and content."""
    step = next(entry.step for entry in map(Entry.from_json, lines_of(folder)) if entry.kind == kind)
    file = folder / "evidence" / f"step-{step:08d}.json"
    return file, json.loads(file.read_text().splitlines()[1])
