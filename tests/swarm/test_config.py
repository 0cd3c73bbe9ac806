"""What the peers of a swarm compare before they talk."""

from __future__ import annotations

import json

from btard.swarm.config import SwarmConfig
from tests.swarm.quadratic import Config


def test_peers_compare_what_changes_the_run_and_nothing_of_their_own() -> None:
    agreed = SwarmConfig().agreed()
    assert {"peers", "byzantine", "protocol.validators", "steps", "seed", "threads"} <= agreed.keys()
    assert not any(key.startswith(("network", "deadlines", "attack")) or key in ("peer", "device") for key in agreed)
    assert json.loads(json.dumps(agreed, allow_nan=False)) == agreed
    assert Config(noise=0.5).agreed() == agreed | {"d": 100, "noise": "0.5"}


def test_peers_compare_their_code_where_it_is_given() -> None:
    one, other = SwarmConfig(code="0123abcd").agreed(), SwarmConfig(code="4567cdef").agreed()
    assert one["code"] == "0123abcd" != other["code"] and "code" not in SwarmConfig().agreed()
