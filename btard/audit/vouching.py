"""A finished run's summary vouches for the other files of its folder, so that one lost, cut or older is noticed.

Whatever copies folders (rsync that was stopped, a bucket with versions) may leave a file out, half, or as it once was.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from blake3 import blake3

from btard.audit.files import (
    ATTESTATION,
    CHECKPOINTS,
    CONFIG,
    EVIDENCE,
    FINAL,
    KEPT_FILE,
    LEDGER,
    MAX_FILE,
    METRICS,
    MODEL,
    PROTOCOL,
    ROSTER,
    RUN,
    VERSION,
    file_digest,
    open_file,
)
from btard.files import UNFINISHED
from btard.protocol.wire import Malformed

FILES = "files"
"""Where a summary holds the digests: name -> 32 hexadecimal digits."""
STATE = "state"
"""What the names of states in the evidence begin with, to which the proof of a choice among them refers."""
FIXED = (*(CONFIG, RUN, VERSION, MODEL, METRICS, LEDGER, PROTOCOL, ROSTER, ATTESTATION, FINAL, KEPT_FILE),)
"""Files of a run folder that do not change any more. What a clock measured is not there: equal runs differ in it."""


class Place(Protocol):
    """A path, of the file system or within an archive."""

    def __truediv__(self, name: str, /) -> Place: ...
    def exists(self) -> bool: ...
    def read_bytes(self) -> bytes: ...


def digests(folder: Path, more: Iterable[str] = ()) -> dict[str, str]:
    """Return name -> digest of the files that a summary vouches for: `FIXED`, `more`, evidence and checkpoints."""
    names = [name for name in (*FIXED, *more) if (folder / name).is_file()]
    for pattern in (f"{EVIDENCE}/*", f"{CHECKPOINTS}/**/step-*.safetensors"):
        names += sorted(str(file.relative_to(folder)) for file in folder.glob(pattern) if file.suffix != UNFINISHED)
    return {name: _digest(folder, name) for name in names}


def unfit(folder: Place, summary: Mapping[str, Any], names: Iterable[str] | None = None) -> str | None:
    """Return what is wrong with the first file that is not the one that the summary vouches for; None if all are.

    `names`: look at these alone. A folder without any checkpoints/ is in order: they are large, and may be deleted.
    """
    vouched = summary.get(FILES)
    if not isinstance(vouched, Mapping):
        return None
    wanted = None if names is None else set(names)
    kept = wanted is None and (folder / CHECKPOINTS).exists()
    for name, digest in vouched.items():
        path = PurePosixPath(name)
        if (wanted is not None and name not in wanted) or (path.parts[:1] == (CHECKPOINTS,) and not kept):
            continue
        if path.is_absolute() or ".." in path.parts or not path.parts or not name.isprintable():
            return f"{folder}/summary.json: vouches for {name!a:.80}, which is no file of the folder"
        try:
            fits = _digest(folder, name) == digest
        except (OSError, ValueError):  # a name that no file can have, or too long a file
            fits = False
        if not fits:
            how = "is not the one" if (folder / name).exists() else "is missing: expected the one"
            return f"{folder}/{name}: {how} that summary.json was made of"
    return None


def proofs(folder: Path, step: int) -> dict[str, str]:
    """Return name -> digest of each proof of a step before `step`, and of all states."""
    found = {}
    for file in sorted((folder / EVIDENCE).glob("*-*.*")):
        kind, _, rest = file.name.partition("-")
        number = rest.partition(".")[0]
        of_before = kind == "step" and number.isdecimal() and int(number) < step
        if of_before or kind == STATE:
            found[file.name] = _digest_of_proof(file)
    return found


def lost_proof(folder: Path, vouched: Mapping[str, str]) -> str | None:
    """Return what is wrong with the first proof that is not as `proofs` found it; None if all are."""
    for name, digest in vouched.items():
        try:
            found = _digest_of_proof(folder / EVIDENCE / name)
        except OSError as error:
            return f"{folder}/{EVIDENCE}/{name}: cannot be read ({error.strerror})"
        except Malformed as error:
            return f"{folder}/{EVIDENCE}/{error}"
        if found != digest:
            return f"{folder}/{EVIDENCE}/{name}: is not what it was when the checkpoint was written"
    return None


def digest_of(file: Place) -> str:
    """Return BLAKE3 of the file's content, 32 hexadecimal digits. Errors: OSError; Malformed, as of `file_digest`."""
    if isinstance(file, Path):
        return file_digest(file, MAX_FILE, 16)
    return blake3(file.read_bytes()).hexdigest(16)


def _digest(folder: Place, name: str) -> str:
    """The digest of a file; of a checkpoint that of its size and header, which has the digest of all the rest."""
    if not name.startswith(f"{CHECKPOINTS}/"):
        return digest_of(folder / name)
    file = Path(str(folder)) / name
    with open_file(file) as stream:
        start = stream.read(8) or b""
        header = stream.read(min(int.from_bytes(start, "little"), 2**24)) or b""
    return blake3(start + header + file.stat().st_size.to_bytes(8, "little")).hexdigest(16)


def _digest_of_proof(file: Path) -> str:
    stat = file.stat()
    return _cached_digest(file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _cached_digest(file: Path, *_: int) -> str:
    """A proof may be as long as the parameters, and every checkpoint vouches for all of them."""
    return digest_of(file)
