"""The end of a run as its active peers sign it: steps, ledger, parameters and their names, settings and keys."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from btard.audit.encoding import check_array, check_hex, check_object
from btard.audit.files import ATTESTATION, read_json, write_json
from btard.audit.numerics import numeric_platform
from btard.protocol import wire
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import signed_digest, tensor_digest
from btard.protocol.identity import Roster
from btard.task import PARAMETERS

if TYPE_CHECKING:
    from btard.audit.recorder import Recorder
    from btard.protocol.peer import Peer
from btard.protocol.record import settings_digest


@dataclass(frozen=True)
class Attestation:
    """What the active peers sign at the end of a run, so that nothing can be cut off or changed afterwards."""

    step: int
    """Steps that were done."""
    head: bytes
    """The ledger's head."""
    params: bytes
    """Digest of the final parameters."""
    signatures: dict[int, bytes] = field(default_factory=dict)
    layout: bytes = b""
    """Digest of the names and places of their tensors (`btard.training.layout`); empty if nobody signed it."""

    def digest(self, config: ProtocolConfig, roster: Roster, d: int) -> bytes:
        """What is signed, including the settings and the keys."""
        said = (self.step, self.head, self.params, *((self.layout,) if self.layout else ()))
        return signed_digest("attestation", settings_digest(config), d, *roster.keys, *said)

    def write(self, folder: Path) -> None:
        signatures = [[peer, signature.hex()] for peer, signature in sorted(self.signatures.items())]
        content = {"step": self.step, "head": self.head.hex(), "params": self.params.hex(), "signatures": signatures}
        write_json(folder / ATTESTATION, content | ({"layout": self.layout.hex()} if self.layout else {}))

    @classmethod
    def read(cls, folder: Path) -> Attestation:
        content = read_json(folder / ATTESTATION)
        named = {"layout"} & content.keys()
        check_object(content, ATTESTATION, {"step", "head", "params", "signatures"} | named)
        signatures = {}
        for entry in check_array(content["signatures"], "signatures"):
            peer, signature = wire.check_fields(entry, "signature", 2)
            signatures[wire.check_int(peer, "peer")] = check_hex(signature, "signature")
        step = wire.check_int(content["step"], "step")
        head, params = check_hex(content["head"], "head"), check_hex(content["params"], "params")
        return cls(step, head, params, signatures=signatures, layout=check_hex(content.get("layout", ""), "layout"))


def attest(recorder: Recorder, peers: Iterable[Peer], params: torch.Tensor, layout: bytes = b"") -> Attestation:
    """The end of a run, signed by `peers`; `params` [d] are the final parameters, `layout` as in `Attestation`."""
    peers = tuple(peers)
    if peers:
        recorder.begin(peers[0].roster, params.numel(), numeric_platform(str(params.device)))
    statement = Attestation(recorder.next, recorder.head, tensor_digest(params, PARAMETERS), layout=layout)
    signatures = {
        peer.id: peer.identity.sign(statement.digest(peer.config, peer.roster, params.numel())) for peer in peers
    }
    return replace(statement, signatures=signatures)
