"""What a member says of itself stays within what the others read."""

from __future__ import annotations

import json

import pytest

from btard.protocol.ledger import Entry
from btard.swarm.member import STATUS_LEDGER, _newest
from btard.swarm.state import MAX_STATUS


@pytest.mark.parametrize("voters", [0, 3, 32, 1000])
def test_a_status_has_the_newest_entries_that_fit(voters: int) -> None:
    votes = dict.fromkeys(range(voters), "guilty")
    entries = [Entry(step, "misreport", "guilty", 1, (2,), (1,), step, 0, "", votes) for step in range(500)]
    told = _newest(entries)
    assert told == [entry.to_json() for entry in entries[-len(told) :]] and 1 <= len(told) < 500
    assert len(json.dumps(told)) < STATUS_LEDGER + 2 * len(told) < MAX_STATUS - 20_000
