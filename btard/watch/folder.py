"""What a run's folder says, read within bounds: it may be a stranger's, and it may still grow."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from btard.audit.files import (
    CHECKPOINTS,
    CONFIG,
    EVIDENCE,
    LEDGER,
    METRICS,
    PROTOCOL,
    RUN,
    STATUS,
    TIMINGS,
    VERSION,
    proof_file,
    read_bounded,
    read_json,
    values_in,
)
from btard.audit.settings import read_settings
from btard.audit.vouching import unfit
from btard.harness.pieces import RunFolderError, lines_in
from btard.harness.recorded import recorded_mapping
from btard.harness.run_folder import read_summary
from btard.harness.typed_yaml import ConfigError
from btard.protocol import wire
from btard.protocol.config import MAX_PEERS
from btard.protocol.hashing import PROTOCOL_VERSION
from btard.protocol.ledger import Entry, Ledger
from btard.protocol.limits import MAX_LEDGER, MAX_VALUES
from btard.protocol.record import Transcript
from btard.protocol.wire import Malformed, shown

MAX_LINES, MAX_SMALL = 2**28, 2**22
"""The largest number of bytes that are read of a file of lines, and of a small file."""
MAX_STEPS = 2**20
"""Number of lines that are read of a file of lines, which have MAX_VALUES values in all."""
MAX_PROOFS = 400
"""Number of steps whose recorded messages are shown; a page must stay readable."""
BEGUN = (CONFIG, PROTOCOL, RUN)
"""The files by which a run's folder is known: of a program, of peers with a protocol, and of `btard.simulate`."""
COORDINATOR = "coordinator"
SWARM, TRAINER = "a swarm, as its coordinator sees it", "a swarm, as one of its peers sees it"


@dataclass(frozen=True)
class Proof:
    """The recorded messages of a step with an entry, without their tensors."""

    now: Transcript
    before: Transcript | None
    shown: tuple[tuple[int, str, int, int], ...]
    """What judges were shown: (who showed it, "part" or "aggregate", its sender, its part)."""
    by: int
    platform: str


@dataclass
class Run:
    """A run's folder. Steps are those of the run; a swarm that began from a checkpoint began with step `first`."""

    folder: Path
    kind: str
    config: Mapping[str, Any]
    peers: int
    first: int = 0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    proofs: dict[int, Proof] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None
    status: Mapping[str, Any] = field(default_factory=dict)
    evidence: Path | None = None
    """The folder, perhaps a peer's, that can be audited."""
    notes: list[str] = field(default_factory=list)
    """What is missing or damaged, one line each."""

    @cached_property
    def timing_of(self) -> Mapping[int, dict[str, Any]]:
        """Step -> its line of timings."""
        return {line["step"]: line for line in self.timings}

    def setting(self, *names: str) -> Any:
        """The value of a dotted key; None if there is none."""
        found: Any = self.config
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        return found


def read_run(folder: Path) -> Run:
    """Read the run in `folder`, which is that of a simulation, of torchrun, of a coordinator, a peer or a whole swarm.

    Errors: RunFolderError, one line, if there is none, or one of another version of the protocol.
    """
    folder = _run_in(folder)
    version = _version(folder)
    if version != str(PROTOCOL_VERSION):
        raise RunFolderError(
            f"{folder}: holds a run of protocol version {shown(version, 40)}, this is version {PROTOCOL_VERSION}; "
            "look at it with the release that made it"
        )
    config = _config(folder) if (folder / CONFIG).is_file() else _agreed(folder)
    peers = config.get("peers")
    if type(peers) is not int or not 0 < peers <= MAX_PEERS:
        raise RunFolderError(f"{folder / CONFIG}: peers must be between 1 and {MAX_PEERS}, got {shown(peers, 40)}")
    run = Run(folder, "", config, peers)
    run.metrics, run.timings = _lines(run, METRICS), _lines(run, TIMINGS)
    run.status, run.summary = _small(folder / STATUS), read_summary(folder)
    run.kind, run.first = _kind(run), _first(run)
    _read_ledger(run)
    _read_proofs(run)
    if run.summary is not None and (problem := unfit(folder, run.summary, (METRICS, LEDGER, TIMINGS, STATUS))):
        run.notes.append(f"{problem}: the folder is not whole, copy it again")
    return run


def number(value: Any) -> float | None:
    """`value` if it is a finite number that fits into a float, else None."""
    if type(value) not in (int, float) or abs(value) > 1e300 or not math.isfinite(value):
        return None
    return float(value)


def _run_in(folder: Path) -> Path:
    """The folder of the run: `folder`, or for a whole swarm its coordinator's."""
    try:
        if not folder.exists():
            raise RunFolderError(f"{folder}: no such folder")
        if not folder.is_dir():
            raise RunFolderError(f"{folder}: expected the folder of a run, this is a file")
        if any((folder / name).is_file() for name in BEGUN):
            return folder
        if (folder / COORDINATOR / CONFIG).is_file():
            return folder / COORDINATOR
        within = sorted(
            {file.parent for name in BEGUN for depth in ("*", "*/*") for file in folder.glob(f"{depth}/{name}")}
        )
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be read: {error.strerror}") from None
    if within:
        raise RunFolderError(f"{folder}: holds {len(within)} runs, name one of them, such as {within[0]}")
    raise RunFolderError(
        f"{folder}: no run (no {', '.join(BEGUN)} in it); RUN_DIR is what a program was given as --out"
    )


def _content(file: Path, limit: int) -> bytes:
    try:
        return read_bounded(file, limit)
    except Malformed as error:
        raise RunFolderError(f"{file.parent}: {error}") from None


def _version(folder: Path) -> str:
    """The version of the protocol under which the run was begun, as recorded in its folder."""
    if (folder / VERSION).is_file():
        return _content(folder / VERSION, MAX_SMALL).decode("utf-8", "replace").strip()
    if (folder / CONFIG).is_file():
        return "none"
    if not (folder / PROTOCOL).is_file():
        return str(_small(folder / RUN).get("protocol version"))
    try:
        return str(read_json(folder / PROTOCOL).get("version"))
    except Malformed as error:
        raise RunFolderError(f"{folder}: {error}") from None


def _agreed(folder: Path) -> Mapping[str, Any]:
    """What the peers agreed on, for a run without other settings: one of `btard.simulate` or `btard.distributed`.

    Peers that a rule serves have no protocol: of them the folder keeps what the call was told.
    """
    if not (folder / PROTOCOL).is_file():
        told = {name: str(value) for name, value in _small(folder / RUN).items()}
        peers = int(told["peers"]) if re.fullmatch("[0-9]{1,4}", told.get("peers", "")) else None
        return {"run_id": told.get("run_id"), "peers": peers, "aggregator": {"name": told.get("rule")}}
    try:
        config, _, _ = read_settings(folder)
    except Malformed as error:
        raise RunFolderError(f"{folder}: {error}") from None
    return {"run_id": config.run_id, "peers": config.peers, "protocol": asdict(config)}


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        return recorded_mapping(folder)
    except ConfigError as error:
        raise RunFolderError(shown(error, 400)) from None


def _lines(run: Run, name: str) -> list[dict[str, Any]]:
    file = run.folder / name
    if not file.is_file():
        if name == METRICS:
            run.notes.append(f"{name} is not there: the run has not come to the end of its first step")
        return []
    raw = _content(file, MAX_LINES)
    whole, values = raw.count(b"\n"), values_in(raw)
    if whole > MAX_STEPS or values > MAX_VALUES:
        raise RunFolderError(
            f"{file}: {whole} lines and {values} values, at most {MAX_STEPS} and {MAX_VALUES} are read"
        )
    lines = [line for line, _ in lines_in(raw)]
    if len(lines) < whole:
        run.notes.append(f"{name}: line {len(lines) + 1} is damaged; what follows is not shown")
    told, newest = [], -1
    for line in lines:
        if newest < line["step"] < 2**31:
            told.append(line)
            newest = line["step"]
    return told


def _small(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(_content(file, MAX_SMALL))
    except (ValueError, RecursionError):  # it is put in place whole, so it is damaged; the rest still tells a lot
        return {}
    return content if isinstance(content, dict) else {}


def _kind(run: Run) -> str:
    if (run.folder / STATUS).is_file():
        return SWARM
    if isinstance(run.config.get("network"), dict):
        return TRAINER
    if any((run.folder / CHECKPOINTS).glob("rank-*")):
        return "a process for each peer (torchrun)"
    return "all peers in one process" if (run.folder / CONFIG).is_file() else "a task of one's own"


def _first(run: Run) -> int:
    """The step of the run at which the protocol began."""
    told = run.status.get("first")
    if type(told) is int and 0 <= told < 2**31:
        return told
    begun = run.metrics[0]["step"] if run.metrics else 0
    return begun if run.kind in (SWARM, TRAINER) and run.config.get("start_from") is not None else 0


def _read_ledger(run: Run) -> None:
    file = run.folder / LEDGER
    if not file.is_file():
        run.notes.append(f"{LEDGER} is not there: nobody was removed, or nothing of it was kept")
        return
    ledger, broken = Ledger(), 0
    lines = _content(file, MAX_LEDGER).split(b"\n")[:-1]
    for line, text in enumerate(lines, start=1):  # what follows the last line's end is being written
        try:
            entry = Entry.from_json(text.decode())
        except ValueError as error:
            run.notes.append(f"{LEDGER} line {line}: {shown(error, 200)}; it and what follows is not shown")
            break
        if ledger.append(entry).encode() != text and not broken:
            broken = line
    if broken:
        why = "its head does not follow from the lines before: the file was changed"
        run.notes.append(f"{LEDGER} line {broken}: {why}")
    run.entries = ledger.entries


def _read_proofs(run: Run) -> None:
    """Recorded messages of steps with entries: of this folder, or in a swarm of the first peers that have them."""
    folders = [run.folder]
    if run.folder.name == COORDINATOR:
        folders += sorted(run.folder.parent.glob("peer-*"))[:MAX_PEERS]
    folders = [folder for folder in folders if (folder / EVIDENCE).is_dir()]
    run.evidence = folders[0] if folders else None
    wanted = sorted({entry.step for entry in run.entries})
    if len(wanted) > MAX_PROOFS:
        run.notes.append(f"messages are shown of the first {MAX_PROOFS} of {len(wanted)} steps with an entry")
    for step in wanted[:MAX_PROOFS]:
        for folder in folders:
            if not proof_file(folder / EVIDENCE, step).is_file():
                continue
            try:
                run.proofs[step] = _proof(folder / EVIDENCE, step)
                break
            except Malformed as error:
                run.notes.append(f"{EVIDENCE} of step {step}: {shown(error, 200)}")


def _proof(folder: Path, step: int) -> Proof:
    """The messages of a proof. No signature is checked: `python -m btard.audit` does that."""
    content = read_json(proof_file(folder, step))
    now = wire.convert(content.get("now"), Transcript, "now")
    before = content.get("before")
    pieces = []
    for entry in content["shown"] if isinstance(content.get("shown"), list) else ():
        if isinstance(entry, list) and len(entry) > 5 and isinstance(entry[2], str):
            numbers = [value if type(value) is int else -1 for value in (entry[1], entry[3], entry[5])]
            pieces.append((numbers[0], entry[2][:40], numbers[1], numbers[2]))
    by, platform = content.get("by"), content.get("platform")
    return Proof(
        now,
        None if before is None else wire.convert(before, Transcript, "before"),
        tuple(pieces),
        by if type(by) is int else -1,
        platform[:200] if isinstance(platform, str) else "",
    )
