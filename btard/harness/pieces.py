"""The pieces of a run folder vouch for each other, so that one that was lost, cut or mixed up is noticed.

A checkpoint holds the lines of metrics.jsonl and ledger.jsonl up to its step, and the digests of the proofs and of the
states that proofs refer to; the summary has the digests of all files that stay (`btard.audit.vouching`). Lines that are
missing are put back from the checkpoint; anything else that does not fit is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from btard.audit.files import EVIDENCE, LEDGER, METRICS, TIMINGS
from btard.audit.vouching import STATE, lost_proof, proofs, unfit
from btard.boundary import Mistake
from btard.harness.typed_yaml import AnyPath

PREFIX = "folder/"
"""Prefix of the names of these tensors in a checkpoint."""
TIMED = "timed"
"""The piece that says how many lines of timings a checkpoint was written after, if it does not hold them."""
WHOLE = "copy the folder again as a whole, or delete it to start again"
"""What to do about a piece that cannot be restored."""
AGAIN = "copy the folder again as a whole, or delete summary.json and run the command of the run again"
"""What to do about a file that is not the one that the summary was made of."""

Pieces = Mapping[str, bytes]
"""Name -> what a checkpoint holds of it: lines, or the digests of proofs as JSON."""


class RunFolderError(Mistake, ValueError):
    """The folder cannot be used for this run; one line that says why and what to do."""


def collect(folder: Path, step: int, *, first: int = 0, timings: bool = False) -> dict[str, Tensor]:
    """Return what the checkpoint of `step` should hold of the folder: [bytes] uint8 tensors, by name.

    `first`: the step of the run that is step 0 of ledger and proofs. `timings`: hold these, too, which makes
    checkpoints of equal runs differ; otherwise their number.
    """
    pieces = {METRICS: _joined(lines_before(folder / METRICS, step))}
    pieces[LEDGER] = _joined(lines_before(folder / LEDGER, step - first))
    measured = lines_before(folder / TIMINGS, step)
    pieces |= {TIMINGS: _joined(measured)} if timings else {TIMED: str(len(measured)).encode()}
    pieces[EVIDENCE] = json.dumps(proofs(folder, step - first), sort_keys=True).encode()
    return {
        PREFIX + name: torch.frombuffer(bytearray(text + b"\n"), dtype=torch.uint8) for name, text in pieces.items()
    }


def separate(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Pieces]:
    """Return a checkpoint's tensors without those that `collect` made, and those tensors as bytes."""
    pieces = {
        name.removeprefix(PREFIX): tensor.numpy().tobytes()[:-1]
        for name, tensor in tensors.items()
        if name.startswith(PREFIX)
    }
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(PREFIX)}, pieces


def missing_proof(folder: Path, pieces: Pieces) -> str | None:
    """Return what is wrong with the proofs that a checkpoint vouches for; None if all are as they were."""
    return lost_proof(folder, json.loads(pieces.get(EVIDENCE, b"{}")))


def mend(
    folder: Path, step: int, pieces: Pieces, *, first: int = 0, grows: bool = False
) -> tuple[dict[str, bytes], list[str]]:
    """Return the content that files have to get so that they hold all lines that a checkpoint vouches for, and a line
    for people about each.

    Empty where nothing is missing. `grows`: files may have more lines of before `step`, which came later. Raises
    RunFolderError if a file has other lines than those.
    """
    wrong: dict[str, bytes] = {}
    said = []
    for name in (METRICS, LEDGER, TIMINGS):
        if name not in pieces:
            continue
        wanted, everything = pieces[name].splitlines(), [line for _, line in lines_of(folder / name)]
        found = lines_before(folder / name, step - first if name == LEDGER else step)
        if found == wanted or (grows and found[: len(wanted)] == wanted):
            continue
        if found != wanted[: len(found)]:
            raise RunFolderError(
                f"{folder}/{name}: does not fit the checkpoint of step {step}: they are of different runs, or the file "
                f"was changed; {WHOLE}"
            )
        said.append(
            f"{folder}/{name} had {len(found)} of {len(wanted)} lines: put back from the checkpoint of step {step}"
        )
        wrong[name] = _joined([*wanted, *everything[len(found) :]])
    if (number := int(pieces.get(TIMED, b"0"))) > (left := len(lines_before(folder / TIMINGS, step))):
        said.append(f"{folder}/{TIMINGS} has {left} of {number} lines: how long the other steps took is lost")
    return wrong, said


def check_finished(
    folder: AnyPath, summary: Mapping[str, Any], names: Iterable[str] | None = (METRICS, LEDGER), again: str = AGAIN
) -> None:
    """Raise RunFolderError if one of the files `names` (None: any) is not the one that the run's summary vouches for.

    `again` says what to do then.
    """
    if (problem := unfit(folder, summary, names)) is not None:
        raise RunFolderError(f"{problem}; {again}")


def lines_of(file: AnyPath) -> list[tuple[dict[str, Any], bytes]]:
    """Return the JSON objects of a file with one per line, and their text, up to the first damaged line."""
    return lines_in(file.read_bytes()) if file.exists() else []


def lines_in(raw: bytes) -> list[tuple[dict[str, Any], bytes]]:
    """As `lines_of`, in a file's content."""
    found: list[tuple[dict[str, Any], bytes]] = []
    for line in raw.split(b"\n")[:-1]:  # what follows the last line's end was cut short
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
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


def forget_states(folder: Path, pieces: Pieces) -> None:
    """Delete the states of the evidence that a checkpoint does not vouch for: of steps that will be repeated."""
    vouched = json.loads(pieces.get(EVIDENCE, b"{}"))
    for file in (folder / EVIDENCE).glob(f"{STATE}-*"):
        if file.name not in vouched:
            file.unlink()
