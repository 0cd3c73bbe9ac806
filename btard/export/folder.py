"""A folder with a model and its proof: written from a run, and checked without one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from btard.audit.files import ATTESTATION, LEDGER, MODEL, PROTOCOL, ROSTER
from btard.audit.ledger import read_ledger
from btard.audit.report import AuditError
from btard.export.card import PROOF
from btard.export.final import ExportError, Final, Signed, signed_by
from btard.protocol.hashing import tensor_digest
from btard.task import PARAMETERS
from btard.training.layout import Slot, read_layout

WEIGHTS = "model.safetensors"


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
    for name in (ATTESTATION, PROTOCOL, ROSTER, LEDGER, MODEL):
        shutil.copyfile(final.folder / name, out / PROOF / name)


def check(out: Path) -> tuple[bytes, Signed]:
    """The digest of the parameters in an exported folder, and who has signed it.

    Errors: ExportError if the folder has no proof, or another model than the one that was signed.
    """
    proof = out / PROOF
    if not proof.is_dir():
        raise ExportError(f"{out}: expected an exported model with its proof in {PROOF}/, found none: nobody signed it")
    slots, _ = read_layout(proof)
    params = vector_of(out / WEIGHTS, [slot for slot in slots if slot.source == PARAMETERS])
    digest = tensor_digest(params, PARAMETERS)
    try:
        lines = read_ledger(proof / LEDGER)
    except AuditError as error:
        raise ExportError(f"{proof}: {error}") from None
    signed = signed_by(proof, lines, digest, params.numel())
    if signed is None:
        raise ExportError(f"{proof}: expected {ATTESTATION}, found none: nobody signed this model")
    return digest, signed


def vector_of(file: Path, slots: list[Slot]) -> Tensor:
    """The vector [d] of a run, float32, assembled from the named tensors in a safetensors file.

    Of several names of one place the first counts.
    """
    slots = list({slot.offset: slot for slot in reversed(slots) if 0 not in slot.shape}.values())
    flat = torch.zeros(max((slot.end for slot in slots), default=0))
    try:
        with safe_open(file, framework="pt") as content:
            found: Mapping[str, Tensor] = {slot.name: content.get_tensor(slot.name) for slot in slots}
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{file}: cannot be read ({error})") from None
    for slot in slots:
        if tuple(found[slot.name].shape) != slot.shape:
            raise ExportError(f"{file}: {slot.name} is of shape {tuple(found[slot.name].shape)}, not {slot.shape}")
        try:
            flat.as_strided(slot.shape, slot.stride, slot.offset).copy_(found[slot.name])
        except RuntimeError as error:
            raise ExportError(f"{MODEL}: {slot.name} has no place in a vector of {flat.numel()} ({error})") from None
    return flat
