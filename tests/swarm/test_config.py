"""What the peers of a swarm compare before they talk, and keys of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from btard.checks import FieldError
from btard.harness.settings import read_config
from btard.harness.typed_yaml import ConfigError
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


@pytest.mark.parametrize(
    ("old", "key", "new"),
    [
        ({"validators": 1}, "validators", "protocol.validators"),
        ({"deadlines": {"transfer": 60}}, "deadlines.transfer", "deadlines.uplink"),
    ],
)
def test_an_old_key_is_refused_with_the_new_one(tmp_path: Path, old: dict[str, Any], key: str, new: str) -> None:
    file = tmp_path / "swarm.yaml"
    file.write_text(yaml.safe_dump(old))
    with pytest.raises(ConfigError, match=rf"swarm.yaml: {key} is {new}.* since version 0.2"):
        read_config(SwarmConfig, file)


def test_more_peers_than_the_network_keeps_connections_to_are_refused() -> None:
    with pytest.raises(FieldError, match="peers must be <= 500, got 501; the network keeps no more connections"):
        SwarmConfig(peers=501)
