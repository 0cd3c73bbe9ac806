"""The pieces of a run folder vouch for each other, so that one that was lost, cut or mixed up is noticed.

A checkpoint holds the lines of metrics.jsonl and ledger.jsonl up to its step, and the digests of the proofs; the
summary has the digests of both files. Lines that are missing are put back from the checkpoint; anything else that does
not fit is refused.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor

from btard.boundary import Mistake
from btard.harness.typed_yaml import AnyPath

METRICS, LEDGER = "metrics.jsonl", "ledger.jsonl"
EVIDENCE = "evidence"
PREFIX = "folder/"
"""What the names of these tensors begin with in a checkpoint."""
FILES = "files"
"""Where a summary holds the digests."""

Pieces = Mapping[str, bytes]
"""Name -> what a checkpoint holds of it: lines, or the digests of proofs as JSON."""


class RunFolderError(Mistake, ValueError):
    """The folder cannot be used for this run; one line that says why and what to do."""


def collect(folder: Path, step: int) -> dict[str, Tensor]:
    """Return what the checkpoint of `step` is to hold of the folder: [bytes] uint8 tensors, by name."""
    pieces = {name: _joined(lines_before(folder / name, step)) for name in (METRICS, LEDGER)}
    pieces[EVIDENCE] = json.dumps(_proofs(folder, step), sort_keys=True).encode()
    return {
        PREFIX + name: torch.frombuffer(bytearray(text + b"\n"), dtype=torch.uint8) for name, text in pieces.items()
    }


def separate(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Pieces]:
    """Return a checkpoint's tensors without those that `collect` made, and these as bytes."""
    pieces = {
        name.removeprefix(PREFIX): tensor.numpy().tobytes()[:-1]
        for name, tensor in tensors.items()
        if name.startswith(PREFIX)
    }
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}, pieces


def missing_proof(folder: Path, pieces: Pieces) -> str | None:
    """Return what is wrong with the proofs that a checkpoint vouches for; None if all are as they were."""
    for name, digest in json.loads(pieces.get(EVIDENCE, b"{}")).items():
        try:
            found = _digest_of_proof(folder / EVIDENCE / name)
        except OSError as error:
            return f"{folder}/{EVIDENCE}/{name}: cannot be read ({error.strerror})"
        if found != digest:
            return f"{folder}/{EVIDENCE}/{name}: is not what it was when the checkpoint was written"
    return None


def mend(folder: Path, step: int, pieces: Pieces) -> dict[str, bytes]:
    """Return the content that files have to get so that they hold all lines that a checkpoint vouches for.

    Empty where nothing is missing. Raises RunFolderError if a file has other lines than those.
    """
    wrong: dict[str, bytes] = {}
    for name in (METRICS, LEDGER):
        if name not in pieces:
            continue
        wanted, found = pieces[name].splitlines(), lines_before(folder / name, step)
        if found == wanted:
            continue
        if found != wanted[: len(found)]:
            raise RunFolderError(
                f"{folder}/{name}: does not fit the checkpoint of step {step}: they are of different runs, or the file "
                "was changed; copy the folder again as a whole, or delete it to train from step 0"
            )
        warnings.warn(
            f"{folder}/{name} had {len(found)} of {len(wanted)} lines: put back from the checkpoint of step {step}",
            stacklevel=2,
        )
        wrong[name] = _joined(wanted)
    return wrong


def digests(folder: AnyPath) -> dict[str, str]:
    """Return name -> digest of the files that a summary vouches for."""
    return {name: digest_of(folder / name) for name in (METRICS, LEDGER)}


def check_finished(folder: AnyPath, summary: Mapping[str, Any], names: Iterable[str] = (METRICS, LEDGER)) -> None:
    """Raise RunFolderError if one of the files `names` is not the one that the run's summary vouches for."""
    vouched = summary.get(FILES)
    for name in names:
        if not isinstance(vouched, Mapping) or name not in vouched:
            continue
        try:
            fits = digest_of(folder / name) == vouched[name]
        except OSError:
            fits = False
        if not fits:
            how = "is not the one" if (folder / name).exists() else "is missing: expected the one"
            raise RunFolderError(
                f"{folder}/{name}: {how} that summary.json was made of; copy the folder again as a whole, or delete "
                "summary.json and run the command of the run again"
            )


def digest_of(file: AnyPath) -> str:
    """Return BLAKE3 of the file's content, 32 hexadecimal digits. Errors: OSError."""
    return blake3(file.read_bytes()).hexdigest(16)


def lines_of(file: AnyPath) -> list[tuple[dict[str, Any], bytes]]:
    """Return the JSON objects of a file with one per line, and their text, up to the first damaged line."""
    found: list[tuple[dict[str, Any], bytes]] = []
    if not file.exists():
        return found
    for line in file.read_bytes().split(b"\n")[:-1]:  # what follows the last line's end was cut short
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not isinstance(value, dict) or not isinstance(value.get("step"), int):
            break
        found.append((value, line))
    return found


def lines_before(file: Path, step: int) -> list[bytes]:
    """Return the lines of steps before `step`."""
    return [line for value, line in lines_of(file) if value["step"] < step]


def _joined(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _proofs(folder: Path, step: int) -> dict[str, str]:
    """Name -> digest of each proof of a step before `step`."""
    found = {}
    for file in sorted((folder / EVIDENCE).glob("step-*.*")):
        number = file.name[len("step-") :].partition(".")[0]
        if file.suffix != ".tmp" and number.isdigit() and int(number) < step:
            found[file.name] = _digest_of_proof(file)
    return found


def _digest_of_proof(file: Path) -> str:
    stat = file.stat()
    return _cached_digest(file, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _cached_digest(file: Path, *_: int) -> str:
    """A proof may be as long as the parameters, and every checkpoint vouches for all of them."""
    return digest_of(file)
