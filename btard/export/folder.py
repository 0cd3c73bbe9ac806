"""A folder with a model and its proof: written from a run, and checked without one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from btard.audit.files import ATTESTATION, LEDGER, MODEL, PROTOCOL, ROSTER
from btard.audit.settings import read_settings
from btard.export.card import PROOF
from btard.export.final import ExportError, Final, Signed, lines_of_ledger, signed_by
from btard.protocol.hashing import tensor_digest
from btard.protocol.wire import Malformed, shown
from btard.task import PARAMETERS
from btard.training.layout import Slot, check_places, layout_digest, read_layout

WEIGHTS = "model.safetensors"
PROVED = (ATTESTATION, PROTOCOL, ROSTER, LEDGER, MODEL)
"""The files of the proof."""


def new_folder(out: Path) -> Path:
    """The empty folder `out`, created if necessary. Errors: ExportError if it holds anything."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(
            f"{out}: expected a folder that is new or empty, and it holds something; choose another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    return out


def copy_proof(final: Final, out: Path) -> None:
    """Copy into `out` what is needed to check the signatures there; nothing if nobody has signed."""
    if final.signed is None:
        return
    (out / PROOF).mkdir()
    for name in PROVED:
        shutil.copyfile(final.folder / name, out / PROOF / name)


class Checked(NamedTuple):
    """What an exported folder holds."""

    digest: bytes
    """Of the parameters that were assembled from the named tensors."""
    signed: Signed
    unsigned: tuple[str, ...]
    """Names of tensors that no signature is about, such as buffers."""
    files: tuple[str, ...]
    """And of files."""


def check(out: Path) -> Checked:
    """What is in an exported folder, and who has signed it.

    Every tensor must be one that `model.json` names, and every parameter one of them. Errors: ExportError, LayoutError
    if the folder has no proof, or another model than the one that was signed.
    """
    proof = out / PROOF
    if not proof.is_dir():
        raise ExportError(f"{out}: expected an exported model with its proof in {PROOF}/, found none: nobody signed it")
    slots, _ = read_layout(proof)
    try:
        _, d, _ = read_settings(proof)
    except Malformed as error:
        raise ExportError(f"{proof}: {error}; copy the folder again") from None
    check_places(slots, d)
    params, unsigned = vector_of(out / WEIGHTS, slots, d)
    digest = tensor_digest(params, PARAMETERS)
    signed = signed_by(proof, lines_of_ledger(proof), digest, params.numel(), layout_digest(slots))
    if signed is None:
        raise ExportError(f"{proof}: expected {ATTESTATION}, found none: nobody signed this model")
    files = sorted(str(file.relative_to(out)) for file in out.rglob("*") if not file.is_dir())
    known = {WEIGHTS, *(f"{PROOF}/{name}" for name in PROVED)}
    return Checked(digest, signed, unsigned, tuple(file for file in files if file not in known))


def vector_of(file: Path, slots: list[Slot], d: int) -> tuple[Tensor, tuple[str, ...]]:
    """The vector [d] of a run, float32, assembled from a safetensors file, and the names that are not in it.

    `slots` have passed `check_places`. The file may leave out a name of a tensor that has several; the others must
    agree. Memory is allocated after all shapes were looked at, so it is no more than the file's. Errors: ExportError.
    """
    by_name = {slot.name: slot for slot in slots}
    try:
        with safe_open(file, framework="pt") as content:
            found = sorted(content.keys())
            for name in found:
                if (slot := by_name.get(name)) is None:
                    raise ExportError(f"{file}: {shown(name, 80)} is no tensor of the run's model: {MODEL} lacks it")
                shape = tuple(content.get_slice(name).get_shape())
                if shape != slot.shape:
                    raise ExportError(f"{file}: {slot} is of shape {shape}, not {slot.shape}")
            inside = [by_name[name] for name in found if by_name[name].source == PARAMETERS]
            places = {slot.offset for slot in inside if 0 not in slot.shape}
            for slot in slots:
                if slot.source == PARAMETERS and 0 not in slot.shape and slot.offset not in places:
                    raise ExportError(f"{file}: {slot} is missing")
            flat, filled = torch.zeros(d), set()
            for slot in inside:
                tensor, view = content.get_tensor(slot.name), flat.as_strided(slot.shape, slot.stride, slot.offset)
                if str(tensor.dtype) != f"torch.{slot.dtype}":
                    raise ExportError(f"{file}: {slot} is of {tensor.dtype}, not {slot.dtype}")
                if slot.offset not in filled:
                    view.copy_(tensor)
                elif tensor_digest(view) != tensor_digest(tensor.float()):
                    raise ExportError(f"{file}: {slot} has other numbers than another name of the same tensor")
                filled.add(slot.offset)
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{file}: cannot be read ({error})") from None
    return flat, tuple(name for name in found if by_name[name].source != PARAMETERS)
