"""What a step leaves behind as proof: the signed messages and the disclosed evidence from which anybody can replay it.

A proof is two files, JSON for what was said and safetensors for the tensors, written only for steps that put something
into the ledger. The step after such a step leaves a seal: its signatures are bound to the ledger's new head.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from btard.protocol import wire
from btard.protocol.config import ProtocolConfig
from btard.protocol.hashing import digest, tensor_digest
from btard.protocol.identity import Identity, Roster
from btard.protocol.join import Probation
from btard.protocol.ledger import Entry, read_object
from btard.protocol.messages import NOBODY, Claim, Claims, Commit, Packet, Signed, Votes, max_message
from btard.protocol.record import StepRecord, step_context
from btard.protocol.wire import Malformed

if TYPE_CHECKING:
    from btard.protocol.peer import Peer

EVIDENCE = "evidence"
PROTOCOL, ROSTER, ATTESTATION = "protocol.json", "roster.json", "attestation.json"
MAX_JSON = 2**28
"""Bytes of a JSON file that are read; the messages of a step of 1,000 peers stay below."""
MAX_FIELD, MAX_PHASE = 2**24, 64
"""Characters of one message and of a phase's name that are read."""
TENSOR_DTYPES = {
    str(dtype): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
        *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}
"""What a packet's body may be; what else a hostile peer sends is kept as the bytes that it is."""
GRADIENT_KINDS = frozenset({"wrong_gradient", "undisclosed"})
"""Claims that a judge decides by computing a gradient again."""
ABSENCE_PHASES = ("commit", "coin_commit/0")
"""Of a step that a peer missed: who committed, and the signatures of all who went on."""

Messages = dict[str, dict[int, tuple[Signed, ...]]]


def proof_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.json"


def seal_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.seal.json"


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
            absences,
            dict(record.standings),
            dict(heard),
        )

    def context(self, run_id: str) -> bytes:
        """What the signatures of the step must be bound to."""
        return step_context(run_id, self.step, self.active, self.assignments, self.coin, self.head)

    def to_json(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "active": self.active,
            "assignments": sorted(self.assignments.items()),
            "coin": self.coin.hex(),
            "head": self.head.hex(),
            "absences": sorted(self.absences.items()),
            "probation": [
                [peer, standing.served, standing.missed, sorted(standing.cleared)]
                for peer, standing in sorted(self.probation.items())
            ],
            "messages": {
                phase: [[m.sender, _text(m.payload), _text(m.signature)] for who in sorted(said) for m in said[who]]
                for phase, said in self.messages.items()
            },
        }

    @classmethod
    def from_json(cls, value: Any) -> Section:
        """Malformed if `value` is not what `to_json` returned for some step."""
        content = _object(value, "step", {item.name for item in fields(cls)})
        step = wire.check_int(content["step"], "step")
        messages: Messages = {}
        for phase, said in _object(content["messages"], "messages").items():
            if not phase.isascii() or len(phase) > MAX_PHASE:
                raise Malformed(f"messages: {phase[:MAX_PHASE]!a} is no phase")
            heard: dict[int, list[Signed]] = {}
            for entry in _list(said, f"messages of {phase}"):
                sender, payload, signature = wire.check_fields(entry, "message", 3)
                sender = wire.check_int(sender, "sender")
                signed = Signed(sender, step, phase, _bytes(payload, "payload"), _bytes(signature, "signature"))
                heard.setdefault(sender, []).append(signed)
            messages[phase] = {sender: tuple(of_sender) for sender, of_sender in heard.items()}
        return cls(
            step,
            wire.check_list(content["active"], "active", wire.check_int, max_len=2**16),
            _pairs(content["assignments"], "assignments"),
            _hex(content["coin"], "coin"),
            _hex(content["head"], "head"),
            _pairs(content["absences"], "absences"),
            dict(_standing(entry) for entry in _list(content["probation"], "probation")),
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
        tensors = {f"aggregate/{step}/{part}": _host(value) for (step, part), value in self.aggregates.items()}
        if self.params is not None:
            tensors["params"] = _host(self.params)
        shown: list[list[Any]] = []
        for attempt, disclosed in self.shown.items():
            for discloser, packets in disclosed.items():
                for packet in packets:
                    dtype, shape, raw = _flattened(packet.body)
                    tensors[f"packet/{len(shown)}"] = raw
                    what = [packet.kind, packet.sender, packet.step, packet.part, _text(packet.signature)]
                    shown.append([attempt, discloser, *what, dtype, shape])
        file = proof_file(folder, self.now.step)
        hashed = ""
        if tensors:
            binary = file.with_suffix(".safetensors")
            save_file(tensors, binary.with_suffix(".tmp"))
            _commit(binary.with_suffix(".tmp"), binary)
            hashed = _digest_of(binary)
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
        proof.by, proof.signature = wire.check_int(content["by"], "by"), _hex(content.pop("signature"), "signature")
        proof.signed = content_digest(content)
        if content["before"] is not None:
            proof.before = Section.from_json(content["before"])
        for entry in _list(content["missed"], "missed"):
            peer, steps = wire.check_fields(entry, "missed", 2)
            proof.missed[wire.check_int(peer, "peer")] = [Section.from_json(s) for s in _list(steps, "missed steps")]
        if not isinstance(content["tensors"], str):
            raise Malformed("tensors: expected the digest of a file")
        if content["tensors"]:
            binary = file.with_suffix(".safetensors")
            if not binary.is_file():
                raise Malformed(f"{binary.name}: missing")
            if _digest_of(binary) != content["tensors"]:
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
        for index, entry in enumerate(_list(shown, "shown")):
            attempt, discloser, kind, sender, step, part, signature, dtype, shape = wire.check_fields(entry, "shown", 9)
            for value in (attempt, discloser, sender, step, part):
                wire.check_int(value, "shown")
            if not isinstance(kind, str):
                raise Malformed(f"shown: a packet of kind {kind!a:.40}")
            body = _unflattened(tensors.get_tensor(f"packet/{index}"), dtype, shape)
            packet = Packet(kind, sender, step, part, body, _bytes(signature, "signature"))
            disclosed = self.shown.setdefault(attempt, {})
            disclosed[discloser] = (*disclosed.get(discloser, ()), packet)


def content_digest(content: Mapping[str, Any]) -> bytes:
    """What the recording peer signs of a proof."""
    return digest("proof", json.dumps(content, sort_keys=True))


class Recorder:
    """Writes a run's proofs into `folder`: hand it every finished step.

    It holds on to the step before and to the commit phases of steps that somebody missed; a step without entries costs
    a few references.
    """

    def __init__(self, folder: Path, config: ProtocolConfig) -> None:
        self.folder, self.config = Path(folder), config
        self.next, self.head = 0, b""
        """The next step, and the ledger's head before it."""
        self._before: StepRecord | None = None
        self._missed: dict[int, list[Section]] = {}
        self._to_seal = self._begun = False

    def begin(self, roster: Roster, d: int) -> None:
        """Once: write the run's settings and keys, and forget what the folder holds of the next step and of later ones.

        `finished` does it before the first step that it takes in, for by then a resumed run has restored the recorder.
        """
        if self._begun:
            return
        self._begun = True
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / PROTOCOL, {"d": d, "config": asdict(self.config)})
        # Of those who were there from the start: the keys of others stand in the ledger.
        write_json(self.folder / ROSTER, {"keys": [key.hex() for key in roster.keys[: self.config.peers]]})
        (self.folder / ATTESTATION).unlink(missing_ok=True)
        for file in (self.folder / EVIDENCE).glob("step-*"):
            step = file.name[len("step-") :].partition(".")[0]
            if file.suffix == ".tmp" or (step.isdigit() and int(step) >= self.next):
                file.unlink()

    def finished(self, peers: Sequence[Peer], parameters: Callable[[int], torch.Tensor]) -> None:
        """Take in the step that the honest `peers` have just finished; `parameters`: step -> x [d] of it.

        Several peers serve better than one: who did not get all of the evidence is passed over.
        """
        peers = [peer for peer in peers if peer.last is not None and peer.id in peer.last.active]
        if not peers:
            return
        self.begin(peers[0].roster, peers[0].d)
        witness = max(peers, key=lambda peer: _with_majority(self.config, peer))
        record = witness.current
        ledger = peers[0].ledger
        entries = list(takewhile(lambda entry: entry.step == record.step, reversed(ledger.entries)))
        if entries:
            self._proof(record, entries, parameters).write(self.folder / EVIDENCE, witness.id, witness.identity)
        elif self._to_seal:
            write_json(seal_file(self.folder / EVIDENCE, record.step), {"now": _seal(record).to_json()})
        self._to_seal = bool(entries)
        absences = {**peers[0].absences, **{i: standing.missed for i, standing in peers[0].probation.items()}}
        missing = {peer for peer, count in absences.items() if count and peer not in record.expelled}
        section = Section.of(record, ABSENCE_PHASES) if missing else None
        for peer in missing:
            seen = self._missed.get(peer, [])
            if section is not None and len(seen) < absences[peer]:
                self._missed[peer] = [*seen, section]
        self._missed = {peer: self._missed[peer] for peer in missing}
        self._before, self.next, self.head = record, record.step + 1, ledger.head

    def _proof(self, record: StepRecord, entries: Sequence[Entry], parameters: Callable[[int], torch.Tensor]) -> Proof:
        claims = raised_claims(self.config, record)
        held = {
            (about.step, part): a for about in (self._before, record) if about for part, a in about.aggregates.items()
        }
        concerned = {(c.step, c.part) for by_accuser in claims.values() for c in by_accuser}
        wanted = [key for key in held if key in concerned or (key[0], NOBODY) in concerned]
        recomputed = any(c.kind in GRADIENT_KINDS for by_accuser in claims.values() for c in by_accuser)
        commits = {} if self._before is None else self._before.commits
        return Proof(
            Section.of(record),
            None if self._before is None else Section.of(self._before),
            {entry.accused: self._missed.get(entry.accused, []) for entry in entries if entry.kind == "gone"},
            {
                attempt: _concerned(shown, claims.get(attempt, {}), self.config.run_id, commits)
                for attempt, shown in record.shown.items()
            },
            {key: held[key] for key in sorted(wanted)},
            parameters(record.step - 1) if recomputed else None,
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold, as JSON values."""
        return {
            "next": self.next,
            "head": self.head.hex(),
            "before": None if self._before is None else Section.of(self._before).to_json(),
            "missed": [[peer, [section.to_json() for section in steps]] for peer, steps in self._missed.items()],
            "to_seal": self._to_seal,
        }

    def restore(self, state: Mapping[str, Any], last: StepRecord | None) -> None:
        """Take over what `state` returned; `last` is the step before as a peer remembers it."""
        self.next, self.head = state["next"], bytes.fromhex(state["head"])
        self._missed = {peer: [Section.from_json(s) for s in steps] for peer, steps in state["missed"]}
        self._to_seal = state["to_seal"]
        if state["before"] is not None and last is not None:
            section = Section.from_json(state["before"])
            last.heard, last.head, last.absences = section.messages, section.head, section.absences
            last.standings = section.probation
            self._before = last


def raised_claims(config: ProtocolConfig, record: StepRecord) -> dict[int, dict[Claim, tuple[int, ...]]]:
    """Round of accusations -> claim -> who raised it, from the broadcasts of the step."""
    limit = max_message(Claims, config.peers, config.directions)
    raised: dict[int, dict[Claim, tuple[int, ...]]] = {}
    for attempt in record.shown:
        raised[attempt] = {}
        for sender, said in record.heard.get(f"accuse/{attempt}", {}).items():
            try:
                claims = said[0].open(Claims, limit).claims
            except (Malformed, IndexError):
                continue
            for claim in claims:
                raised[attempt][claim] = (*raised[attempt].get(claim, ()), sender)
    return raised


def _concerned(
    shown: Mapping[int, Sequence[Packet]],
    claims: Mapping[Claim, tuple[int, ...]],
    run_id: str,
    commits: Mapping[int, Commit],
) -> dict[int, tuple[Packet, ...]]:
    """The packets that a judge of `claims` can have looked at, one of each: nobody fills the disk with others.

    About a part these come from the parties of the claim. A whole gradient may come from anybody, if its parts have the
    hashes in `commits`, those of the step before.
    """
    parts: dict[int, set[tuple[int, int]]] = {}
    for claim, accusers in claims.items():
        for party in (claim.accused, *accusers):
            parts.setdefault(party, set()).add((claim.step, claim.part))
    whole = {(claim.accused, claim.step) for claim in claims if claim.part == NOBODY and claim.accused in commits}
    seen: set[tuple[int, int]] = set()
    kept: dict[int, tuple[Packet, ...]] = {}
    for discloser, packets in shown.items():
        first: dict[tuple[str, int, int, int], Packet] = {}
        for packet in packets:
            author, part = packet.sender, packet.part
            if (packet.step, part) in parts.get(discloser, ()):
                first.setdefault((packet.kind, author, packet.step, part), packet)
            elif (author, packet.step) in whole and (author, part) not in seen:
                committed = commits[author].digests
                if 0 <= part < len(committed) and packet.digest(run_id) == committed[part]:
                    seen.add((author, part))
                    first.setdefault((packet.kind, author, packet.step, part), packet)
        if first:
            kept[discloser] = tuple(first.values())
    return kept


def _with_majority(config: ProtocolConfig, peer: Peer) -> int:
    """How many of the votes of `peer` were those of the majority: whoever got other evidence than most has fewer."""
    record, owner = peer.current, peer.id
    limit = max_message(Votes, config.peers, config.directions)
    agreeing = 0
    for attempt in record.shown:
        cast: dict[int, tuple[str, ...]] = {}
        for sender, said in record.heard.get(f"vote/{attempt}", {}).items():
            try:
                cast[sender] = said[0].open(Votes, limit).verdicts
            except (Malformed, IndexError):
                continue
        for index, mine in enumerate(cast.get(owner, ())):
            votes = Counter(verdicts[index] for verdicts in cast.values() if index < len(verdicts))
            agreeing += 2 * votes[mine] > len(cast)
    return agreeing


def _seal(record: StepRecord) -> Section:
    return Section.of(record, ABSENCE_PHASES[1:])


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

    def digest(self, config: ProtocolConfig, roster: Roster, d: int) -> bytes:
        """What is signed: also the settings and the keys."""
        settings = json.dumps(asdict(config), sort_keys=True)
        return digest("attestation", config.run_id, settings, d, *roster.keys, self.step, self.head, self.params)

    def write(self, folder: Path) -> None:
        signatures = [[peer, signature.hex()] for peer, signature in sorted(self.signatures.items())]
        content = {"step": self.step, "head": self.head.hex(), "params": self.params.hex(), "signatures": signatures}
        write_json(folder / ATTESTATION, content)

    @classmethod
    def read(cls, folder: Path) -> Attestation:
        content = read_json(folder / ATTESTATION, {"step", "head", "params", "signatures"})
        signatures = {}
        for entry in _list(content["signatures"], "signatures"):
            peer, signature = wire.check_fields(entry, "signature", 2)
            signatures[wire.check_int(peer, "peer")] = _hex(signature, "signature")
        step = wire.check_int(content["step"], "step")
        return cls(step, _hex(content["head"], "head"), _hex(content["params"], "params"), signatures)


def attest(recorder: Recorder, peers: Iterable[Peer], params: torch.Tensor) -> Attestation:
    """The end of a run, signed by `peers`; `params` [d] are the final parameters."""
    peers = tuple(peers)
    if peers:
        recorder.begin(peers[0].roster, params.numel())
    statement = Attestation(recorder.next, recorder.head, tensor_digest(params, "parameters"))
    signatures = {
        peer.id: peer.identity.sign(statement.digest(peer.config, peer.roster, params.numel())) for peer in peers
    }
    return Attestation(statement.step, statement.head, statement.params, signatures)


def read_settings(folder: Path) -> tuple[ProtocolConfig, int, Roster]:
    """The run's settings, its number of parameters d, and its keys; Malformed names what is wrong."""
    content = read_json(folder / PROTOCOL, {"d", "config"})
    d = content["d"]
    if type(d) is not int or not 1 <= d < 2**32:
        raise Malformed(f"{PROTOCOL}: d is {d!r:.40}")
    settings = _object(content["config"], f"{PROTOCOL}: config")
    for item in fields(ProtocolConfig):  # annotations are strings such as "int | None"
        value = settings.get(item.name, item.default)
        if type(value).__name__.replace("NoneType", "None") not in str(item.type).split(" | "):
            integer = type(value) is int and "float" in str(item.type)
            word = isinstance(value, str) and str(item.type).startswith("Literal")
            if not integer and not word:
                raise Malformed(f"{PROTOCOL}: {item.name} must be {item.type}, got {value!a:.40}")
    try:
        config = ProtocolConfig(**settings)
        config.run_id.encode()
    except (TypeError, ValueError) as error:
        raise Malformed(f"{PROTOCOL}: {error}") from None
    if config.peers > 2**16:
        raise Malformed(f"{PROTOCOL}: {config.peers} peers are too many")
    keys = _list(read_json(folder / ROSTER, {"keys"})["keys"], "keys")
    roster = Roster(tuple(_hex(key, "key") for key in keys))
    if len(roster.keys) != config.peers or any(len(key) != 32 for key in roster.keys):
        raise Malformed(f"{ROSTER}: expected {config.peers} keys of 32 bytes, got {len(roster.keys)}")
    return config, d, roster


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """`content` and, on a line before it, its digest; the file appears complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, sort_keys=True)
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(f"{blake3(text.encode()).hexdigest()}\n{text}\n", encoding="utf-8")
    _commit(temporary, file)


def read_json(file: Path, names: set[str]) -> dict[str, Any]:
    """What `write_json` wrote, an object with the keys `names`; Malformed if it is anything else."""
    raw = read_bounded(file, MAX_JSON)
    hashed, _, text = raw.partition(b"\n")
    if not text.endswith(b"\n") or blake3(text[:-1]).hexdigest().encode() != hashed:
        raise Malformed(f"{file.name}: its content does not match its digest")
    return _object(read_object(text, file.name), file.name, names)


def read_bounded(file: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; Malformed for any other."""
    try:
        if not file.is_file():
            raise Malformed(f"{file.name}: missing")
        if file.stat().st_size > limit:
            raise Malformed(f"{file.name}: {file.stat().st_size} bytes, at most {limit} are read")
        return file.read_bytes()
    except OSError as error:
        raise Malformed(f"{file.name}: {error.strerror}") from None


def _commit(temporary: Path, file: Path) -> None:
    with temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    temporary.replace(file)


def _digest_of(file: Path) -> str:
    hasher = blake3()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            hasher.update(block)
    return hasher.hexdigest()


def _host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _flattened(body: torch.Tensor | bytes) -> tuple[str, list[int], torch.Tensor]:
    """(dtype, shape, bytes [n]) of a packet's body, whatever its sender made it of."""
    if isinstance(body, bytes):
        return "bytes", [len(body)], torch.frombuffer(bytearray(body), dtype=torch.uint8) if body else torch.empty(0)
    host = _host(body)
    return str(host.dtype), list(host.shape), host.reshape(-1).view(torch.uint8) if host.numel() else torch.empty(0)


def _unflattened(raw: torch.Tensor, dtype: Any, shape: Any) -> torch.Tensor | bytes:
    sizes = wire.check_list(shape, "shape", wire.check_int, max_len=64)
    raw = raw.reshape(-1) if raw.numel() else torch.empty(0, dtype=torch.uint8)
    if raw.dtype == torch.uint8 and dtype == "bytes":
        return raw.numpy().tobytes()
    if raw.dtype != torch.uint8 or not isinstance(dtype, str) or dtype not in TENSOR_DTYPES:
        raise Malformed(f"packet: a body of {dtype!r:.40} is not known here")
    try:
        return raw.view(TENSOR_DTYPES[dtype]).reshape(sizes)
    except RuntimeError:
        raise Malformed(f"packet: {raw.numel()} bytes are no {dtype} of shape {list(sizes)!r:.80}") from None


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bytes(value: Any, what: str) -> bytes:
    if not isinstance(value, str) or len(value) > MAX_FIELD:
        raise Malformed(f"{what}: expected at most {MAX_FIELD} characters of base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed(f"{what}: not base64") from None


def _hex(value: Any, what: str) -> bytes:
    if not isinstance(value, str) or len(value) > 2**10:
        raise Malformed(f"{what}: expected hexadecimal digits")
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise Malformed(f"{what}: expected hexadecimal digits, got {value!r:.40}") from None


def _object(value: Any, what: str, names: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict) or (names is not None and set(value) != names):
        raise Malformed(f"{what}: expected an object{f' with {sorted(names)}' if names else ''}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise Malformed(f"{what}: expected a list, got {type(value).__name__}")
    return value


def _standing(value: Any) -> tuple[int, Probation]:
    peer, served, missed, cleared = wire.check_fields(value, "probation", 4)
    for number in (peer, served, missed):
        wire.check_int(number, "probation")
    return peer, Probation(
        served, missed, frozenset(wire.check_list(cleared, "cleared", wire.check_int, max_len=2**16))
    )


def _pairs(value: Any, what: str) -> dict[int, int]:
    pairs = [wire.check_fields(entry, what, 2) for entry in _list(value, what)]
    return {wire.check_int(first, what): wire.check_int(second, what) for first, second in pairs}
