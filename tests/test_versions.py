"""Nothing that was signed, sent or kept under another version of the protocol is taken for one of this version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from albert.config import Config as SwarmConfig
from btard.audit import AuditError, audit
from btard.audit.attestation import Attestation
from btard.audit.proof import proof_digest
from btard.checkpoints import HEADER, Checkpoints, tensors_digest
from btard.harness.run_folder import RunFolder, RunFolderError
from btard.harness.settings import Settings
from btard.harness.typed_yaml import ConfigError
from btard.protocol import hashing
from btard.protocol.commitments import Hashed
from btard.protocol.config import ProtocolConfig
from btard.protocol.download import Vouch
from btard.protocol.identity import Identity, Roster
from btard.protocol.messages import JoinRequest
from btard.protocol.record import Start
from btard.protocol.signed import Packet
from btard.swarm.checkpoint import load_start, read_start
from resnet.config import Config as ResnetConfig

OLD = Path(__file__).parent / "fixtures" / "old"
"""What runs have left behind before there were versions, without their checkpoints."""
KEY = Identity.from_seed("version")
ROSTER = Roster((KEY.public_key,))


def test_what_was_signed_under_another_version_is_not_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ProtocolConfig(peers=1, validators=0)
    start, end = Start(3, (0,), {}, bytes(32)), Attestation(3, b"", bytes(32))
    hashed = Hashed("run").digest("part", 0, 3, 0, torch.ones(2))

    def digests() -> list[bytes]:
        return [start.binding(config), end.digest(config, ROSTER, 2), proof_digest({"now": 1})]

    request = JoinRequest.create(KEY, "run")
    vouch = Vouch.create(KEY, "run", 0, bytes(32), bytes(32))
    packet = Packet.create(KEY, "part", 0, 3, 0, torch.ones(2), hashed=hashed, context=bytes(32))

    def hold() -> list[bool]:
        return [
            request.authentic("run"),
            vouch.authentic(KEY.public_key, "run", bytes(32)),
            packet.authentic(hashed, bytes(32), ROSTER),
        ]

    before = digests()
    assert all(hold()) and digests() == before
    monkeypatch.setattr(hashing, "PROTOCOL_VERSION", hashing.PROTOCOL_VERSION + 1)
    assert not any(hold()) and not set(digests()) & set(before)
    assert Hashed("run").digest("part", 0, 3, 0, torch.ones(2)) == hashed, "commitments are no signatures"


@pytest.mark.parametrize(
    ("kind", "config"), [("resnet", ResnetConfig()), ("swarm", SwarmConfig())], ids=["resnet", "swarm"]
)
def test_an_old_folder_is_refused_in_one_line(kind: str, config: Settings, tmp_path: Path) -> None:
    shutil.copytree(OLD / kind, tmp_path / "run")
    with pytest.raises(RunFolderError) as refused:
        RunFolder(tmp_path / "run", config)
    words = str(refused.value)
    assert f"holds a run of protocol version none, this is version {hashing.PROTOCOL_VERSION};" in words
    assert "\n" not in words
    with pytest.raises(AuditError) as unread:
        audit(tmp_path / "run")
    words = str(unread.value)
    assert f"the run is of protocol version none, this audits version {hashing.PROTOCOL_VERSION};" in words
    assert "\n" not in words


def test_folders_and_checkpoints_of_a_later_version_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", ResnetConfig())
    folder.start(0)
    folder.log(0, {"loss": 1.0})
    folder.save_checkpoint(1, {"x": torch.ones(1)}, {})
    folder.close()
    RunFolder(tmp_path / "run", ResnetConfig())
    (tmp_path / "run" / "protocol_version").write_text("99\n")
    with pytest.raises(RunFolderError, match="of protocol version 99, this is version"):
        RunFolder(tmp_path / "run", ResnetConfig())
    header = json.dumps({"version": 99, "step": 1, "state": "{}", "digest": ""})
    save_file({"x": torch.ones(1)}, tmp_path / "run" / "checkpoints" / "step-00000001.safetensors", {HEADER: header})
    with pytest.warns(UserWarning, match="protocol version 99, this is version"):
        assert not list(Checkpoints(tmp_path / "run" / "checkpoints").intact())


@pytest.mark.parametrize(
    ("header", "said"),
    [({"btard.albert": {"step": 3}}, "none"), ({"btard.swarm": {"step": 3, "version": 99}}, "99")],
)
def test_a_start_of_another_version_is_refused(header: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = tmp_path / "start.safetensors"
    save_file({"parameters": torch.zeros(3)}, file, {name: json.dumps(value) for name, value in header.items()})
    with pytest.raises(ConfigError, match=f"is of protocol version {said}, this is version") as refused:
        load_start(file, {})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("broken", ["step", "depth", "list"])
def test_a_header_that_no_coordinator_writes_is_refused(broken: str, tmp_path: Path) -> None:
    """Export passes over such a file, as over any that is damaged."""
    file, tensors, step = tmp_path / "start.safetensors", {"parameters": torch.zeros(3)}, float("inf")
    content = tensors_digest(step, "", tensors)  # type: ignore[arg-type]
    said = json.dumps({"version": hashing.PROTOCOL_VERSION, "step": step, "content": content})
    save_file(tensors, file, {"btard.swarm": {"step": said, "depth": "[" * 10**5, "list": "[]"}[broken]})
    with pytest.raises(ConfigError, match="is no checkpoint of a coordinator") as refused:
        load_start(file, {})
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"its step is no number|its header: "):
        read_start(file)
