"""What a step leaves behind as proof: the signed messages and disclosed evidence, from which anybody can replay it.

A proof is two files, JSON for what was said and safetensors for the tensors, written only for steps that put something
into the ledger. The step after such a step leaves a seal: its signatures are bound to the ledger's new head.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta, Struct
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from btard.audit.encoding import check_hex, flattened, to_host, unflattened
from btard.audit.files import MAX_FILE, file_digest, proof_file, read_json, write_json
from btard.audit.settings import check_platform
from btard.files import complete_file
from btard.protocol import wire
from btard.protocol.hashing import signed_digest
from btard.protocol.identity import Identity
from btard.protocol.limits import proof_limit
from btard.protocol.messages import NOBODY
from btard.protocol.record import Transcript, to_json
from btard.protocol.signed import Packet
from btard.protocol.wire import Malformed, Number


class _Shown(Struct, array_like=True, forbid_unknown_fields=True):
    """A packet that was disclosed; its body is among the tensors."""

    attempt: Number
    discloser: Number
    kind: str
    sender: Number
    step: Number
    part: Number
    signature: bytes
    dtype: str
    shape: Annotated[tuple[Number, ...], Meta(max_length=64)]


@dataclass
class Proof:
    """All that an auditor needs to replay step `now.step`."""

    now: Transcript
    before: Transcript | None = None
    """The step before, which verdicts may be about."""
    shown: dict[int, dict[int, tuple[Packet, ...]]] = field(default_factory=dict)
    """Round of accusations -> discloser -> packets."""
    aggregates: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    """(step, part) -> a[j], for the parts that a verdict is about."""
    params: torch.Tensor | None = None
    """x [d] of the step before, if a verdict needs a recomputed gradient."""
    platform: str = ""
    """The numeric platform of the peer that recorded it (`numerics.py`)."""

    by: int = NOBODY
    """The peer that recorded all this, and signed it."""
    signature: bytes = b""
    signed: bytes = b""
    """What the signature is on: the digest of everything else."""

    def write(self, folder: Path, by: int, identity: Identity) -> None:
        """The two files of this step in `folder`, signed by peer `by`; the JSON file names the digest of the other."""
        tensors = {f"aggregate/{step}/{part}": to_host(value) for (step, part), value in self.aggregates.items()}
        if self.params is not None:
            tensors["params"] = to_host(self.params)
        shown: list[_Shown] = []
        for attempt, disclosed in self.shown.items():
            for discloser, packets in disclosed.items():
                for packet in packets:
                    dtype, shape, raw = flattened(packet.body)
                    tensors[f"packet/{len(shown)}"] = raw
                    what = packet.kind, packet.sender, packet.step, packet.part, packet.signature
                    shown.append(_Shown(attempt, discloser, *what, dtype, shape))
        file = proof_file(folder, self.now.step)
        hashed = ""
        if tensors:
            binary = file.with_suffix(".safetensors")
            with complete_file(binary) as temporary:
                save_file(tensors, temporary)
            hashed = file_digest(binary, MAX_FILE)
        content = {
            "now": to_json(self.now, Transcript),
            "before": None if self.before is None else to_json(self.before, Transcript),
            "shown": msgspec.to_builtins(shown),
            "tensors": hashed,
            "by": by,
            "platform": self.platform,
        }
        write_json(file, {**content, "signature": identity.sign(proof_digest(content)).hex()})

    @classmethod
    def read(cls, folder: Path, step: int, d: int) -> Proof:
        """The proof of `step` of a run with `d` parameters. Malformed says what is wrong with the files."""
        file = proof_file(folder, step)
        content = read_json(file, {"now", "before", "shown", "tensors", "by", "platform", "signature"})
        proof = cls(wire.convert(content["now"], Transcript, "now"))
        proof.by, proof.signature = (
            wire.check_int(content["by"], "by"),
            check_hex(content.pop("signature"), "signature"),
        )
        proof.signed = proof_digest(content)
        proof.platform = check_platform(content["platform"], file.name)
        if content["before"] is not None:
            proof.before = wire.convert(content["before"], Transcript, "before")
        if not isinstance(content["tensors"], str):
            raise Malformed("tensors: expected the digest of a file")
        shown = wire.convert(content["shown"], tuple[_Shown, ...], "shown")
        if content["tensors"]:
            binary = file.with_suffix(".safetensors")
            if file_digest(binary, min(MAX_FILE, proof_limit(d, len(shown)))) != content["tensors"]:
                raise Malformed(f"{binary.name}: its content does not match its digest")
            try:
                with safe_open(binary, framework="pt") as tensors:
                    proof._take(tensors, shown, d)
            except (SafetensorError, OSError) as error:
                raise Malformed(f"{binary.name}: {error}") from None
        elif shown:
            raise Malformed("shown: packets without a file of tensors")
        return proof

    def _take(self, tensors: Any, shown: Sequence[_Shown], d: int) -> None:
        for name in tensors.keys():  # noqa: SIM118  (no dict)
            what, _, rest = name.partition("/")
            if what == "packet":
                continue
            value = tensors.get_tensor(name)
            if value.dtype != torch.float32 or value.dim() != 1 or value.numel() > d:
                raise Malformed(f"{name}: expected at most {d} float32 entries, got {value.dtype} {list(value.shape)}")
            if name == "params":
                self.params = value
            else:
                step, _, part = rest.partition("/")
                if what != "aggregate" or not all(n.isascii() and n.isdigit() and len(n) < 12 for n in (step, part)):
                    raise Malformed(f"{name[:80]!a}: no such tensor belongs here")
                self.aggregates[int(step), int(part)] = value
        for index, entry in enumerate(shown):
            body = unflattened(tensors.get_tensor(f"packet/{index}"), entry.dtype, entry.shape)
            packet = Packet(entry.kind, entry.sender, entry.step, entry.part, body, entry.signature)
            disclosed = self.shown.setdefault(entry.attempt, {})
            disclosed[entry.discloser] = (*disclosed.get(entry.discloser, ()), packet)


def proof_digest(content: Mapping[str, Any]) -> bytes:
    """What the recording peer signs of a proof."""
    return signed_digest("proof", json.dumps(content, sort_keys=True))
