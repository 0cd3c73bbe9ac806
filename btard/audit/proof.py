"""What a step leaves behind as proof: the signed messages and the disclosed evidence from which anybody can replay it.

A proof is two files, JSON for what was said and safetensors for the tensors, written only for steps that put something
into the ledger. The step after such a step leaves a seal: its signatures are bound to the ledger's new head.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from btard.audit.encoding import (
    check_array,
    check_base64,
    check_hex,
    check_object,
    check_pairs,
    flattened,
    to_base64,
    to_host,
    unflattened,
)
from btard.audit.files import file_digest, proof_file, put_in_place, read_json, write_json
from btard.protocol import wire
from btard.protocol.hashing import digest
from btard.protocol.identity import Identity
from btard.protocol.messages import NOBODY, Packet, Signed
from btard.protocol.record import Probation, StepRecord, step_context
from btard.protocol.wire import Malformed

MAX_PHASE = 64
"""Characters of a phase's name that are read."""

Messages = dict[str, dict[int, tuple[Signed, ...]]]


@dataclass(frozen=True)
class Section:
    """One step as its broadcasts show it: the agreed state at its start, and the signed messages by phase."""

    step: int
    active: tuple[int, ...]
    assignments: dict[int, int]
    coin: bytes
    """r^{t-1}."""
    head: bytes
    """The ledger's head at the start of the step."""
    tau: float
    """The clipping radius of the step."""
    absences: dict[int, int]
    """Peer -> how many steps in a row it had missed. Like `probation` it counts what former steps showed, and no
    signature covers it but those on what follows from it."""
    probation: dict[int, Probation]
    """Newcomer -> how far it is."""
    messages: Messages

    @classmethod
    def of(cls, record: StepRecord, phases: Iterable[str] | None = None) -> Section:
        heard = record.heard if phases is None else {p: record.heard[p] for p in phases if p in record.heard}
        absences = {peer: count for peer, count in record.absences.items() if count}
        return cls(
            record.step,
            record.active,
            record.assignments,
            record.previous_coin,
            record.head,
            record.tau,
            absences,
            dict(record.standings),
            dict(heard),
        )

    def context(self, run_id: str) -> bytes:
        """What the signatures of the step must be bound to."""
        return step_context(run_id, self.step, self.active, self.assignments, self.coin, self.head, self.tau)

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "active": self.active,
            "assignments": sorted(self.assignments.items()),
            "coin": self.coin.hex(),
            "head": self.head.hex(),
            "tau": self.tau,
            "absences": sorted(self.absences.items()),
            "probation": [
                [peer, standing.served, standing.missed, sorted(standing.cleared)]
                for peer, standing in sorted(self.probation.items())
            ],
            "messages": {
                phase: [
                    [m.sender, to_base64(m.payload), to_base64(m.signature)] for who in sorted(said) for m in said[who]
                ]
                for phase, said in self.messages.items()
            },
        }

    @classmethod
    def from_json(cls, value: Any) -> Section:
        """Malformed if `value` is not what `to_json` returned for some step."""
        content = check_object(value, "step", {item.name for item in fields(cls)})
        step = wire.check_int(content["step"], "step")
        messages: Messages = {}
        for phase, said in check_object(content["messages"], "messages").items():
            if not phase.isascii() or len(phase) > MAX_PHASE:
                raise Malformed(f"messages: {phase[:MAX_PHASE]!a} is no phase")
            heard: dict[int, list[Signed]] = {}
            for entry in check_array(said, f"messages of {phase}"):
                sender, payload, signature = wire.check_fields(entry, "message", 3)
                sender = wire.check_int(sender, "sender")
                signed = Signed(
                    sender, step, phase, check_base64(payload, "payload"), check_base64(signature, "signature")
                )
                heard.setdefault(sender, []).append(signed)
            messages[phase] = {sender: tuple(of_sender) for sender, of_sender in heard.items()}
        return cls(
            step,
            wire.check_list(content["active"], "active", wire.check_int, max_len=2**16),
            check_pairs(content["assignments"], "assignments"),
            check_hex(content["coin"], "coin"),
            check_hex(content["head"], "head"),
            _radius(content["tau"]),
            check_pairs(content["absences"], "absences"),
            dict(_standing(entry) for entry in check_array(content["probation"], "probation")),
            messages,
        )


@dataclass
class Proof:
    """All that an auditor needs to replay step `now.step`."""

    now: Section
    before: Section | None = None
    """The step before, which verdicts may be about."""
    missed: dict[int, list[Section]] = field(default_factory=dict)
    """Peer that counts as gone -> the steps before this one that it missed in a row, ascending."""
    shown: dict[int, dict[int, tuple[Packet, ...]]] = field(default_factory=dict)
    """Round of accusations -> discloser -> packets."""
    aggregates: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    """(step, part) -> a[j], of the parts that a verdict is about."""
    params: torch.Tensor | None = None
    """x [d] of the step before, where a verdict needs a gradient computed again."""

    by: int = NOBODY
    """Who recorded all this, and signed it."""
    signature: bytes = b""
    signed: bytes = b""
    """What the signature is on: the digest of everything else."""

    def write(self, folder: Path, by: int, identity: Identity) -> None:
        """The two files of this step in `folder`, signed by peer `by`; the JSON file names the digest of the other."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"aggregate/{step}/{part}": to_host(value) for (step, part), value in self.aggregates.items()}
        if self.params is not None:
            tensors["params"] = to_host(self.params)
        shown: list[list[Any]] = []
        for attempt, disclosed in self.shown.items():
            for discloser, packets in disclosed.items():
                for packet in packets:
                    dtype, shape, raw = flattened(packet.body)
                    tensors[f"packet/{len(shown)}"] = raw
                    what = [packet.kind, packet.sender, packet.step, packet.part, to_base64(packet.signature)]
                    shown.append([attempt, discloser, *what, dtype, shape])
        file = proof_file(folder, self.now.step)
        hashed = ""
        if tensors:
            binary = file.with_suffix(".safetensors")
            save_file(tensors, binary.with_suffix(".tmp"))
            put_in_place(binary.with_suffix(".tmp"), binary)
            hashed = file_digest(binary)
        content = {
            "now": self.now.to_json(),
            "before": None if self.before is None else self.before.to_json(),
            "missed": [[peer, [section.to_json() for section in steps]] for peer, steps in sorted(self.missed.items())],
            "shown": shown,
            "tensors": hashed,
            "by": by,
        }
        write_json(file, {**content, "signature": identity.sign(content_digest(content)).hex()})

    @classmethod
    def read(cls, folder: Path, step: int, d: int) -> Proof:
        """The proof of `step` of a run with `d` parameters. Malformed says what is wrong with the files."""
        file = proof_file(folder, step)
        content = read_json(file, {"now", "before", "missed", "shown", "tensors", "by", "signature"})
        proof = cls(Section.from_json(content["now"]))
        proof.by, proof.signature = (
            wire.check_int(content["by"], "by"),
            check_hex(content.pop("signature"), "signature"),
        )
        proof.signed = content_digest(content)
        if content["before"] is not None:
            proof.before = Section.from_json(content["before"])
        for entry in check_array(content["missed"], "missed"):
            peer, steps = wire.check_fields(entry, "missed", 2)
            proof.missed[wire.check_int(peer, "peer")] = [
                Section.from_json(s) for s in check_array(steps, "missed steps")
            ]
        if not isinstance(content["tensors"], str):
            raise Malformed("tensors: expected the digest of a file")
        if content["tensors"]:
            binary = file.with_suffix(".safetensors")
            if not binary.is_file():
                raise Malformed(f"{binary.name}: missing")
            if file_digest(binary) != content["tensors"]:
                raise Malformed(f"{binary.name}: its content does not match its digest")
            try:
                with safe_open(binary, framework="pt") as tensors:
                    proof._take(tensors, content["shown"], d)
            except (SafetensorError, OSError) as error:
                raise Malformed(f"{binary.name}: {error}") from None
        elif content["shown"]:
            raise Malformed("shown: packets without a file of tensors")
        return proof

    def _take(self, tensors: Any, shown: Any, d: int) -> None:
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
        for index, entry in enumerate(check_array(shown, "shown")):
            attempt, discloser, kind, sender, step, part, signature, dtype, shape = wire.check_fields(entry, "shown", 9)
            for value in (attempt, discloser, sender, step, part):
                wire.check_int(value, "shown")
            if not isinstance(kind, str):
                raise Malformed(f"shown: a packet of kind {kind!a:.40}")
            body = unflattened(tensors.get_tensor(f"packet/{index}"), dtype, shape)
            packet = Packet(kind, sender, step, part, body, check_base64(signature, "signature"))
            disclosed = self.shown.setdefault(attempt, {})
            disclosed[discloser] = (*disclosed.get(discloser, ()), packet)


def content_digest(content: Mapping[str, Any]) -> bytes:
    """What the recording peer signs of a proof."""
    return digest("proof", json.dumps(content, sort_keys=True))


def _radius(value: Any) -> float:
    if type(value) is not float or not value > 0:
        raise Malformed(f"tau: expected a number > 0, got {value!a:.40}")
    return value


def _standing(value: Any) -> tuple[int, Probation]:
    peer, served, missed, cleared = wire.check_fields(value, "probation", 4)
    for number in (peer, served, missed):
        wire.check_int(number, "probation")
    return peer, Probation(
        served, missed, frozenset(wire.check_list(cleared, "cleared", wire.check_int, max_len=2**16))
    )
