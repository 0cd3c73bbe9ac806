"""The newest state in a run folder, whoever wrote it, and who has signed it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from btard.audit.attestation import Attestation
from btard.audit.files import ATTESTATION, CHECKPOINTS, CONFIG, FINAL, KEPT_FILE, LEDGER, PROTOCOL, RUN, numbered
from btard.audit.ledger import AgreedState, Line, read_ledger
from btard.audit.report import AuditError
from btard.audit.settings import read_settings
from btard.checkpoints import checkpoints_of, under
from btard.harness.pieces import check_finished, separate
from btard.harness.recorded import recorded_mapping
from btard.harness.run_folder import read_summary
from btard.harness.typed_yaml import ConfigError
from btard.protocol.hashing import tensor_digest
from btard.protocol.identity import Roster
from btard.protocol.wire import Malformed
from btard.swarm.checkpoint import read_start
from btard.task import PARAMETERS
from btard.training.layout import KEPT, LOCAL, layout_digest, read_layout

WHOLE = "copy the run folder again as a whole"
"""What to do about a folder whose files do not belong together."""
TRAINING = "training/"
"""Prefix of the names of a trainer's own tensors in its checkpoints."""
BESIDE = "local/"
"""And of what belongs to the peer alone."""
OWN = f"{BESIDE}{LOCAL}/"
"""Of that, its own buffers; its number follows."""


class ExportError(ValueError):
    """The folder cannot be exported, or is not what was signed; one line that says why and what to do."""


@dataclass(frozen=True)
class Signed:
    """What the remaining peers have signed at the end, checked against their keys."""

    step: int
    """Steps since the beginning of the run, which may have begun from another one's checkpoint."""
    head: str
    """The ledger's head, hex."""
    by: tuple[int, ...]
    """Peers with a genuine signature, ascending."""
    left: tuple[int, ...]
    """Peers that were in the run at its end, by the ledger."""
    run_id: str
    named: bool
    """Whether they have signed which name stands for which parameters, too."""
    founders: int
    """How many peers there were at the start: their keys are all that was not written by who has signed."""

    @property
    def anchored(self) -> bool:
        """Whether more peers of the start have signed than can ever be Byzantine, less than half of them.

        Settings and ledger are no evidence, for nobody but the signers vouches for them: in a forged ledger newcomers
        come in, everybody else is gone, and forged settings say that nobody is Byzantine.
        """
        return len([peer for peer in self.by if peer < self.founders]) > (self.founders - 1) // 2

    @property
    def enough(self) -> bool:
        """Whether most of those that were left have signed, names included, and one of them is honest for sure."""
        return self.named and 2 * len(set(self.by) & set(self.left)) > len(self.left) and self.anchored


@dataclass(frozen=True)
class Final:
    """The newest state of a run."""

    folder: Path
    step: int
    """Steps that it has done."""
    finished: bool
    tensors: Mapping[str, Tensor]
    """By the names that `model.json` uses: `parameters` [d], and what else the checkpoint holds."""
    digest: bytes
    """Digest of the parameters, as peers sign it."""
    config: Mapping[str, Any]
    """config.yaml of the run."""
    removed: tuple[str, ...]
    """A few words for each peer that the ledger removed."""
    signed: Signed | None
    """None if nobody signs: under a trusted server, or before the end."""
    peer: int = 0
    """The peer to which these statistics belong, if each peer has its own."""
    vouched_by: tuple[int, ...] = field(default=())
    """In a coordinator's folder: the members that vouched for the whole state."""


def read_final(folder: Path) -> Final:
    """The newest intact checkpoint of a run folder, and what its other files say about it.

    The folder may be a simulated run's, one of torchrun, a trainer's or a coordinator's. Errors: ExportError if it has
    no checkpoint, or if its parameters or ledger are not those that the peers signed. RunFolderError if its files do
    not belong together.
    """
    folder = Path(folder)
    summary = read_summary(folder)
    if summary is not None:
        check_finished(folder, summary, None, WHOLE)
    elif (folder / FINAL).is_file():
        raise ExportError(f"{folder}/summary.json: is missing, and {FINAL} is not; {WHOLE}")
    config = _config(folder)
    step, tensors, peer, vouched_by = _newest(folder)
    tensors |= {**under(TRAINING, tensors), **under(BESIDE, tensors)}
    own = under(OWN, tensors)
    peer = min((int(number) for name in own if (number := name.partition("/")[0]).isdecimal()), default=peer)
    moved = {name.partition("/")[2]: x for name, x in own.items() if name.startswith(f"{peer}/")}
    tensors = {**_kept(folder), **tensors, **{f"{KEPT}/{name}": x for name, x in moved.items()}}
    if PARAMETERS not in tensors:
        raise ExportError(f"{folder}: its newest checkpoint has no tensor {PARAMETERS}; this release did not write it")
    digest = tensor_digest(tensors[PARAMETERS], PARAMETERS)
    finished = summary is not None
    if summary is not None and isinstance(summary.get("steps"), int):
        step = summary["steps"]
    lines = lines_of_ledger(folder)
    if not finished:  # what came after the checkpoint has no part in it
        lines = [line for line in lines if line.entry.step < step]
    signed, d = None, tensors[PARAMETERS].numel()
    if finished and (folder / ATTESTATION).exists():
        signed = signed_by(folder, lines, digest, d, layout_digest(read_layout(folder)[0]))
    return Final(folder, step, finished, tensors, digest, config, removed(lines), signed, peer, vouched_by)


def removed(lines: list[Line]) -> tuple[str, ...]:
    """A few words for each peer that these lines of a ledger removed."""
    return tuple(
        f"peer {peer} ({line.entry.kind}, step {line.entry.step})" for line in lines for peer in line.entry.peers
    )


def signed_by(folder: Path, lines: list[Line], digest: bytes, d: int, layout: bytes) -> Signed | None:
    """Who has signed that a run ended with this digest of its d parameters and with this ledger; None if nobody did.

    `layout`: the digest of the parameters' names and places, which has to be the one that was signed, if one was.
    Errors: ExportError if what was signed is something else.
    """
    if not (folder / ATTESTATION).exists():
        return None
    try:
        statement = Attestation.read(folder)
        config, size, founders = read_settings(folder)
        agreed = AgreedState(config, founders, lines)
        roster = Roster((*founders.keys, *(key for _, key in agreed.admitted)))
    except (Malformed, AuditError) as error:
        raise ExportError(f"{folder}: {error}; copy the run folder again") from None
    head = lines[-1].head if lines else b""
    for what, mine, theirs in (
        ("parameters", digest, statement.params),
        ("ledger", head, statement.head),
        ("number of parameters", size, d),
        ("names of parameters", layout, statement.layout or layout),
    ):
        if mine != theirs:
            raise ExportError(
                f"{folder}: its {what} are not what the peers signed in {ATTESTATION}; the file was changed or damaged"
            )
    message = statement.digest(config, roster, d)
    genuine = [peer for peer, signature in statement.signatures.items() if roster.verify(peer, message, signature)]
    left = agreed.active(statement.step)
    by, named = tuple(sorted(genuine)), bool(statement.layout)
    return Signed(statement.step, head.hex(), by, left, config.run_id, named, len(founders.keys))


def _config(folder: Path) -> Mapping[str, Any]:
    """The run's settings; without a file of them, what its peers agreed on, or nothing. Errors: ExportError."""
    file = folder / CONFIG
    if file.is_file():
        try:
            return recorded_mapping(folder)
        except ConfigError as error:
            raise ExportError(f"{error}; {WHOLE}") from None
    if not (folder / RUN).is_file() and not (folder / FINAL).is_file():
        whole = f"{folder}/coordinator" if (folder / "coordinator").is_dir() else "the folder after --out"
        raise ExportError(f"{folder}: expected a run folder, found no config.yaml in it; name {whole}")
    if not (folder / PROTOCOL).is_file():
        return {}  # under a trusted server nobody agrees on anything
    try:
        return asdict(read_settings(folder)[0])
    except Malformed as error:
        raise ExportError(f"{folder}: {error}; copy the run folder again") from None


def lines_of_ledger(folder: Path) -> list[Line]:
    """The entries of the ledger in a folder; none without one. Errors: ExportError."""
    if not (folder / LEDGER).exists():
        return []
    try:
        return read_ledger(folder / LEDGER)
    except AuditError as error:
        raise ExportError(f"{folder}: {error}") from None


def _kept(folder: Path) -> dict[str, Tensor]:
    """What peers did not train, as it was before the first step. Errors: ExportError."""
    file = folder / KEPT_FILE
    return _tensors(file) if file.is_file() else {}


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{file}: damaged ({error}); copy the run folder again") from None


def _newest(folder: Path) -> tuple[int, dict[str, Tensor], int, tuple[int, ...]]:
    """Step, tensors, whose statistics they are, and who vouched for them."""
    if (folder / FINAL).is_file():
        return 0, _tensors(folder / FINAL), 0, ()
    place = folder / CHECKPOINTS
    for file in reversed(checkpoints_of(folder).files()):
        found = _of_coordinator(file)
        if found is not None:
            return found[0], found[1], 0, found[2]
    ranks = [rank for rank, _ in numbered(place, "rank-")]
    best: tuple[int, dict[str, Tensor], int] | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged checkpoint is passed over: what is exported is said
        for peer, rank in [(0, None), *((rank, rank) for rank in ranks)]:
            saved = next(checkpoints_of(folder, rank).intact(), None)
            if saved is not None and (best is None or saved.step > best[0]):  # ranks have equal parameters then
                best = saved.step, separate(saved.tensors)[0], peer
    if best is None:
        raise ExportError(
            f"{folder}: expected a checkpoint in checkpoints/, found none that is intact; a run writes the first one "
            "after checkpoint_every steps and the last one at its end"
        )
    return *best, ()


def _of_coordinator(file: Path) -> tuple[int, dict[str, Tensor], tuple[int, ...]] | None:
    """Step, tensors and who vouched for them in a coordinator's checkpoint; None if it is none, or damaged."""
    try:
        header, tensors = read_start(file)
        return header["step"], tensors, tuple(int(peer) for peer in header["confirmed_by"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None
